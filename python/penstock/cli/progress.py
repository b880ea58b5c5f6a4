"""What a person sees while a run trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from penstock.training.loop import Progress as RunProgress
from penstock.training.runs import RunObserver


class ProgressPrinter(RunObserver):
    """Prints one line per epoch, and on a terminal a bar for the epoch under way.

    Args:
        console: where to print.
        title: printed first, once the data are read and there is no error in them.
        quiet: print nothing.
    """

    def __init__(self, console: Console, title: str, *, quiet: bool = False) -> None:
        self._console = console
        self._title: str | None = title
        self._quiet = quiet
        self._epochs = 0
        self._done = self._batches = 0
        self._task: TaskID | None = None
        # On a pipe or in a log file, a bar that redraws itself would be noise.
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> ProgressPrinter:
        self._bar.start()
        self._task = self._bar.add_task("reading the data", total=None, note="")
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _end_task(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
            self._bar.refresh()  # else lines printed next would be followed by the old bar

    def _print(self, text: str, style: str | None = None) -> None:
        if not self._quiet:
            self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def data_loaded(self, lines: Sequence[str]) -> None:
        self._end_task()
        if self._title is not None:
            self._print(self._title, "bold")
            self._title = None
        for line in lines:
            self._print(line)

    def fold_started(self, number: int, folds: int) -> None:
        self._print(f"Fold {number} of {folds}", "bold")

    def fit_started(self, progress: RunProgress, epochs: int) -> None:
        self._epochs = epochs
        if progress.epoch or progress.batch:
            place = f", after batch {progress.batch}" if progress.batch else ""
            self._print(f"Going on in epoch {min(progress.epoch + 1, epochs)}{place}")

    def epoch_started(self, epoch: int, batches: int, done: int) -> None:
        self._end_task()
        self._done, self._batches = done, batches
        self._task = self._bar.add_task(
            f"epoch {epoch}/{self._epochs}",
            total=batches,
            completed=done,
            note=f"{done}/{batches}",
        )

    def batch_done(self, mean_loss: float) -> None:
        if self._task is not None:
            self._done += 1
            note = f"{self._done}/{self._batches} loss {mean_loss:.4f}"
            self._bar.update(self._task, advance=1, note=note)

    def epoch_done(self, record: dict[str, Any], kept: bool) -> None:
        self._end_task()
        width = len(str(self._epochs))
        line = (
            f"epoch {record['epoch']:>{width}}/{self._epochs}   "
            f"loss {record['train_loss']:.4f}   train {100 * record['train_accuracy']:5.1f} %   "
        )
        if "dev_accuracy" in record:
            line += f"dev {100 * record['dev_accuracy']:5.1f} %   "
        line += f"{record['seconds']:6.1f} s"
        self._print(line + ("   best so far" if kept and "dev_accuracy" in record else ""))
