"""The learning-curve picture of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.training.errors import require

_TRAIN, _DEV = "#4477aa", "#cc6633"


def plot_learning_curve(
    path: Path, history: Sequence[dict[str, Any]], best_epoch: int | None, title: str
) -> None:
    """Draw loss and accuracy over the epochs as a PNG.

    Args:
        path: the file to write.
        history: one entry per epoch, with keys epoch, train_loss, train_accuracy and, where a dev
            set was held out, dev_loss and dev_accuracy.
        best_epoch: marked by a line, unless None.
        title: drawn above.
    """
    require("matplotlib")
    # The object interface, so that no display is looked for and no global state is touched.
    figure_type = require("matplotlib.figure").Figure
    ticker = require("matplotlib.ticker")
    figure = figure_type(figsize=(9, 3.8), layout="constrained")
    epochs = [entry["epoch"] for entry in history]
    marker = "o" if len(epochs) < 40 else ""
    for axes, key, label, scale in zip(
        figure.subplots(1, 2),
        ("loss", "accuracy"),
        ("loss (nats)", "accuracy (%)"),
        (1, 100),
        strict=True,
    ):
        for split, name, colour in (("train", "training", _TRAIN), ("dev", "dev", _DEV)):
            name_in_history = f"{split}_{key}"
            if all(name_in_history in entry for entry in history):
                axes.plot(
                    epochs,
                    [scale * entry[name_in_history] for entry in history],
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    label=name,
                )
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.6", linestyle="--", linewidth=1, zorder=0)
            axes.annotate(
                f"kept: epoch {best_epoch}",
                (best_epoch, 0.5),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="center",
                fontsize=8,
                color="0.4",
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    # Through a temporary name, so that a kill leaves no half picture.
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)
