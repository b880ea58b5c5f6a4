"""What both experiments do with a command line: train, tune, time, or print tables."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.training.checkpoints import read_json
from penstock.training.errors import RunError, UserError
from penstock.training.tables import file_digest
from records import Store, described
from rich.console import Console
from runner import Job, Work, run, use_threads

#: Of the splits on which settings are tried out; results have other seeds.
TUNING_SEED = 1000


@dataclass(frozen=True)
class Experiment:
    """One program.

    Attributes:
        models: settings of each model by name; first those that matter most. Models of one tier,
            the setting "tier", are run together.
        data: names of the data sets.
        grid: settings to try, by name.
        tuning_data, tuning_folds: what to try them on.
        settings: from the arguments, all that records depend on but the models.
        folds: of a data set, how many parts it is tested on in turn.
        work: see `runner.run`.
        time: from the arguments, models and a function to be called with what runs, times by model.
        tables: name -> function from the results to Markdown.
    """

    models: Mapping[str, dict[str, Any]]
    data: tuple[str, ...]
    grid: Mapping[str, tuple[Any, ...]]
    tuning_data: tuple[str, ...]
    tuning_folds: int
    settings: Callable[[argparse.Namespace], dict[str, Any]]
    folds: Callable[[argparse.Namespace, str], int]
    work: Work
    time: Callable[[argparse.Namespace, list[str], Callable[[str], None]], dict[str, Any]]
    tables: Mapping[str, Callable[[dict[str, Any]], str]]


def parser(
    description: str, experiment: Experiment, embeddings: str = "random"
) -> argparse.ArgumentParser:
    """The options that both programs have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--out", type=Path, required=True, help="the results, a JSON file")
    result.add_argument(
        "--embeddings",
        default=embeddings,
        help="a file of word2vec's or GloVe's, or 'random' to learn them from the data",
    )
    result.add_argument("--models", nargs="+", choices=experiment.models, metavar="MODEL")
    result.add_argument("--data", nargs="+", choices=experiment.data, metavar="NAME")
    result.add_argument("--seeds", type=int, default=3)
    result.add_argument("--epochs", type=int, help="instead of the experiment's own")
    result.add_argument("--first-folds", type=int, help="of every seed only so many for now")
    result.add_argument("--processes", type=int, help="records at once; default: one a core")
    mode = result.add_mutually_exclusive_group()
    mode.add_argument("--table", action="store_true", help="print what --out holds, run nothing")
    mode.add_argument(
        "--tune", action="store_true", help="try settings, on the development rows alone"
    )
    mode.add_argument("--time", action="store_true", help="time training steps, all in turn")
    result.add_argument("--threads", type=int, help="of --time; default: one a core")
    result.add_argument("--batches", type=int, default=10, help="of --time")
    return result


def embeddings_of(given: str, size: int, min_count: int) -> dict[str, Any]:
    """What the results say about the words' vectors, `--embeddings`."""
    if given == "random":
        return {"kind": "random", "size": size, "min_count": min_count}
    path = Path(given)
    if not path.is_file():
        raise UserError(f"--embeddings: expected 'random' or a file, got {given!r}")
    return {"kind": "file", "name": path.name, "sha256": file_digest(path)}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tiers(models: Mapping[str, dict[str, Any]], names: Iterable[str]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(models[name]["tier"], []).append(name)
    return [found[tier] for tier in sorted(found)]


def _jobs(experiment: Experiment, args: argparse.Namespace, settings: dict[str, Any]) -> list[Job]:
    """All jobs, important ones first: tier by tier, and of each every seed's first folds first.

    Wherever it stops, the same folds are there for all networks that are compared.
    """
    limit = args.first_folds or math.inf
    folds = {
        name: int(min(experiment.folds(args, name), limit)) for name in args.data or experiment.data
    }
    given = {"settings": settings, "arguments": vars(args)}
    return [
        {"data": data, "model": model, "seed": seed, "fold": fold, **given}
        for models in _tiers(experiment.models, args.models or experiment.models)
        for fold in range(max(folds.values()))
        for seed in range(args.seeds)
        for data in folds
        if fold < folds[data]
        for model in models
    ]


def _tuning(
    experiment: Experiment, args: argparse.Namespace, settings: dict[str, Any]
) -> list[Job]:
    """Jobs of all settings of the grid, each a model of its own by name."""
    jobs: list[Job] = []
    models: dict[str, dict[str, Any]] = {}
    for name in args.models or experiment.models:
        spec = experiment.models[name]
        grid = {key: values for key, values in experiment.grid.items() if key in spec}
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            words = ", ".join(f"{key} {value}" for key, value in point.items())
            models[f"{name}: {words}"] = {**spec, **point}
    settings["models"] = models
    settings["tuning"] = True
    given = {"settings": settings, "arguments": vars(args), "tuning": True}
    for data in args.data or experiment.tuning_data:
        for fold in range(min(experiment.tuning_folds, experiment.folds(args, data))):
            for model in models:
                job = {"data": data, "model": model, "seed": TUNING_SEED, "fold": fold}
                jobs.append({**job, **given})
    return jobs


def _train(experiment: Experiment, args: argparse.Namespace, console: Console) -> None:
    settings = experiment.settings(args)
    names = args.models or list(experiment.models)
    settings["models"] = {
        name: {k: v for k, v in experiment.models[name].items() if k != "tier"} for name in names
    }
    jobs = (_tuning if args.tune else _jobs)(experiment, args, settings)
    store = Store(args.out, settings, described("torch"))
    try:
        run(
            jobs,
            experiment.work,
            store,
            processes=args.processes or _cores(),
            console=console,
        )
    finally:
        store.close()


def _time(experiment: Experiment, args: argparse.Namespace, console: Console) -> None:
    threads = args.threads or _cores()
    names = args.models or list(experiment.models)
    use_threads(threads)
    settings = experiment.settings(args)
    settings["models"] = {
        name: {k: v for k, v in experiment.models[name].items() if k != "tier"} for name in names
    }
    store = Store(args.out, settings, described("torch"))
    try:
        with console.status("reading") as status:
            times = experiment.time(args, names, status.update)
        store.set("timing", {"threads": threads, "machine": described("torch"), "models": times})
    finally:
        store.close()


def main(experiment: Experiment, arguments: argparse.ArgumentParser) -> None:
    """Run the program."""
    args = arguments.parse_args()
    for name in ("seeds", "processes", "threads", "batches", "epochs", "first_folds"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            arguments.error(
                f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}"
            )
    console = Console()
    try:
        if args.time:
            _time(experiment, args, console)
        elif not args.table:
            _train(experiment, args, console)
        if not args.tune:
            results = read_json(args.out)
            for name, make in experiment.tables.items():
                if "timing" in results or not name.endswith(", time"):
                    print(make(results), end="\n\n")
    except UserError as error:
        sys.exit(f"error: {error}")
    except RunError as error:
        sys.exit(f"stopped: {error}\nWhat is done is in {args.out}; the same command goes on.")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; what is done is in {args.out}, and the same command goes on")
