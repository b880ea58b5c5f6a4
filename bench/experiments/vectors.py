"""Word vectors by word2vec's skip-gram from the texts of a table, whatever their labels.

The papers take vectors trained on corpora of billions of words. Where there are none at hand, these
stand in for them:

    python bench/experiments/vectors.py imdb.train.tsv.gz --out vectors.bin
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from corpora import tokens_of
from penstock.training.errors import require
from penstock.training.tables import read_table


def main() -> None:
    """Train vectors, and write them in word2vec's binary format."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="TSV or CSV files, gzipped or not")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=200, help="features of a vector")
    parser.add_argument("--min-count", type=int, default=3, help="leave out rarer words")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=1, help="with more than 1 the result is never the same"
    )
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0" and args.threads == 1:
        print("note: set PYTHONHASHSEED=0 for the same vectors in every run")
    models = require("gensim.models", "bench")
    texts = [
        tokens_of(text) for path in args.data for text in read_table(path, with_labels=False).texts
    ]
    model = models.Word2Vec(
        texts,
        vector_size=args.size,
        window=5,
        min_count=args.min_count,
        sg=1,
        negative=5,
        epochs=args.epochs,
        workers=args.threads,
        seed=0,
    )
    model.wv.save_word2vec_format(str(args.out), binary=True)
    print(f"{len(model.wv)} words of {args.size} features, from {sum(map(len, texts))} words")


if __name__ == "__main__":
    main()
