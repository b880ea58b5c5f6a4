"""What the command ``penstock train`` reaches by itself: runs it by seed and keeps its figures.

    python bench/experiments/training.py --imdb imdb.train.tsv.gz --movies movie_reviews.tsv \
        --out bench/results/training_cpu.json

Runs that the file has already are not made again, so a kill costs the run under way.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.training.checkpoints import read_json
from penstock.training.errors import UserError
from penstock.training.tables import file_digest
from records import Store, described

_REVIEWS = "--hidden 100 --max-length 512 --cut middle --dropout 0.5 --lr 0.002 --test-fraction 0.1"
_SLICED = "--model sliced-gru --slices 8,8"
_PLAIN = "--model gru --layers 1"
_IMDB = f"{_REVIEWS} --threshold 7 --min-count 5 --batch-size 50 --epochs 2"
_MOVIES = f"{_REVIEWS} --batch-size 20"


@dataclass(frozen=True)
class Setting:
    """What is run: `data` is digits or an option that names the file."""

    data: str
    options: str
    seeds: int = 3


SETTINGS = {
    "digits": Setting("digits", ""),
    "digits, forgetting": Setting("digits", "--layers 2 --hidden 96 --epochs 40 --memory 0", 1),
    "digits, memory": Setting("digits", "--layers 2 --hidden 96 --epochs 40 --memory 64", 1),
    "digits, gru": Setting("digits", "--model gru", 1),
    "digits, sliced-gru": Setting("digits", "--model sliced-gru --slices 8", 1),
    "imdb, sliced-gru": Setting("imdb", f"{_SLICED} {_IMDB}"),
    "imdb, gru": Setting("imdb", f"{_PLAIN} {_IMDB}"),
    "movies, sliced-gru": Setting(
        "movies", f"{_SLICED} {_MOVIES} --epochs 6 --embedding-scale 0.2"
    ),
    "movies, gru": Setting("movies", f"{_PLAIN} {_MOVIES} --epochs 6 --embedding-scale 0.2"),
    "movies, gru, longer": Setting(
        "movies", f"{_PLAIN} {_MOVIES} --epochs 15 --patience 0 --embedding-scale 0.2"
    ),
    "movies, sliced-gru, wide embeddings": Setting(
        "movies", f"{_SLICED} {_MOVIES} --epochs 6 --embedding-scale 1"
    ),
}


def train(file: Path | None, options: str, seed: int) -> dict[str, Any]:
    """Run the command; its accuracy, seconds, and size.

    Raises:
        subprocess.CalledProcessError: the command failed; what it said was printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "penstock.cli", "train", *([str(file)] if file else [])]
        command += [*options.split(), "--seed", str(seed), "--out", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = read_json(run / "metrics.json")
    return {
        "accuracy": round(found["accuracy"], 6),
        "evaluated_on": found["evaluated_on"],
        "examples": found["examples"],
        "best_epoch": found["best_epoch"],
        "parameters": found["parameters"],
        "seconds": round(found["seconds"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the results, a JSON file")
    parser.add_argument("--imdb", type=Path, help="IMDB's reviews with their stars")
    parser.add_argument("--movies", type=Path, help="the 2,000 long film reviews")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="NAME")
    args = parser.parse_args()
    files = {"digits": None, "imdb": args.imdb, "movies": args.movies}
    names = [name for name in args.only or SETTINGS if SETTINGS[name].data == "digits"
             or files[SETTINGS[name].data] is not None]  # fmt: skip
    settings = {
        "program": "training",
        "data": {
            name: {file.name: file_digest(file)} for name, file in files.items() if file is not None
        },
        "options": {name: SETTINGS[name].options for name in names},
    }
    try:
        store = Store(args.out, settings, described())
        with contextlib.closing(store):
            for name in names:
                setting = SETTINGS[name]
                for seed in range(setting.seeds):
                    key = {"data": setting.data, "model": name, "seed": seed, "fold": 0}
                    if not store.has(key):
                        found = train(files[setting.data], setting.options, seed)
                        store.add({**key, **found})
                        print(f"{name}, seed {seed}: {found['accuracy']}", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"stopped: {error}\nWhat is done is in {args.out}; the same command goes on.")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; what is done is in {args.out}, and the same command goes on")


if __name__ == "__main__":
    main()
