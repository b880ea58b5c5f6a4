"""Texts, their splits, and the vectors of their words, as both experiments read them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from penstock.training.batching import TokenExamples, stratified_folds, stratified_split
from penstock.training.embeddings import read_embeddings
from penstock.training.tables import read_table, sorted_labels
from penstock.training.text import Tokenizer, Vocabulary

#: The six sets of sentences of the SRU paper's Table 1, by their files; a second file is held out.
SENTENCES: dict[str, tuple[str, ...]] = {
    "cr": ("cr.tsv",),
    "subj": ("subj.tsv",),
    "mr": ("mr.tsv",),
    "trec": ("trec.train.tsv",),
    "mpqa": ("mpqa.tsv",),
    "sst": ("sst2.train.tsv", "sst2.dev.tsv"),
}

_CLITIC = re.compile(r"\s+(?:n\s*['’]\s*t|['’]\s*(?:s|re|ve|ll|d|m))(?!\w)")
_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_TOKENIZE = Tokenizer()


def tokens_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks.

    Some of the sets come with words taken apart ("does n 't"), and some not: endings are joined to
    their words, and compounds taken apart at hyphens, so that a word has one spelling.
    """
    joined = _CLITIC.sub(lambda found: re.sub(r"\s", "", found[0]).replace("’", "'"), text.lower())
    return _TOKENIZE(_HYPHEN.sub(" - ", joined))


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised texts with their classes.

    Attributes:
        name: of the data.
        tokens: N texts.
        labels: class of each, int64 (N,).
        names: of the C classes.
        held_out: indices of the rows of a test file, None if the data have none.
    """

    name: str
    tokens: list[list[str]]
    labels: np.ndarray
    names: list[str]
    held_out: np.ndarray | None

    def folds(self, folds: int) -> int:
        """How many parts are tested on in turn: `folds`, or 1 where there is a test file."""
        return folds if self.held_out is None else 1

    def split(self, seed: int, fold: int, folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of training, development and test rows.

        The test rows are part `fold` of `folds`, or the test file; of the others a tenth of
        every class is for development.
        """
        if self.held_out is None:
            test = stratified_folds(self.labels, folds, seed)[fold]
        else:
            test = self.held_out
        rest = np.setdiff1d(np.arange(len(self.labels)), test)
        train, dev = stratified_split(self.labels[rest], 0.1, seed + 1)
        return rest[train], rest[dev], test

    def split_in_tenths(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of training, development and test rows, 8 : 1 : 1 of every class."""
        parts = stratified_folds(self.labels, 10, seed)
        return np.sort(np.concatenate(parts[2:])), parts[0], parts[1]


@lru_cache(maxsize=8)
def load_corpus(name: str, *paths: Path) -> Corpus:
    """Read a table, and a second one that is held out to test on if there is one."""
    tables = [read_table(path) for path in paths]
    texts = [text for table in tables for text in table.texts]
    labels = [label for table in tables for label in table.labels]
    names = sorted_labels(labels)
    number = {label: i for i, label in enumerate(names)}
    held_out = None
    if len(tables) > 1:
        held_out = np.arange(len(tables[0]), len(texts))
    return Corpus(
        name,
        [tokens_of(text) for text in texts],
        np.array([number[label] for label in labels], dtype=np.int64),
        names,
        held_out,
    )


@lru_cache(maxsize=8)
def _vectors(path: Path, wanted: frozenset[str]) -> tuple[dict[str, np.ndarray], int]:
    return read_embeddings(path, wanted)


@dataclass(frozen=True)
class Words:
    """What a text's words become.

    Attributes:
        vocabulary: numbers of the words.
        table: their vectors, float32 (V, D), row 0 (padding) zero.
        found: share of the running words for which a vector was read.
    """

    vocabulary: Vocabulary
    table: np.ndarray
    found: float

    def examples(
        self,
        corpus: Corpus,
        rows: np.ndarray,
        *,
        max_length: int | None = None,
        pad: str = "right",
        bucket: int = 0,
    ) -> TokenExamples:
        """The rows as sequences of numbers; of longer ones the last `max_length` words."""
        sequences = [self.vocabulary.encode(corpus.tokens[i], max_length, "start") for i in rows]
        return TokenExamples(sequences, corpus.labels[rows], pad=pad, bucket=bucket)


@lru_cache(maxsize=8)
def words_with_vectors(corpus: Corpus, path: Path, scale: float) -> Words:
    """All words of a corpus with vectors from a file, which are not to be trained.

    Vectors are scaled to a standard deviation of `scale` over all of them. A word that the file
    does not have gets a random one of as much spread, the same in every run.
    """
    wanted = frozenset(token for tokens in corpus.tokens for token in tokens)
    vectors, size = _vectors(path, wanted)
    vocabulary = Vocabulary.build(corpus.tokens)
    table = np.random.default_rng(0).standard_normal((len(vocabulary), size), np.float32)
    table *= np.float32(scale)
    table[vocabulary.padding_index] = 0
    factor = np.float32(scale / np.std(np.stack(list(vectors.values()))))
    for i, token in enumerate(vocabulary.tokens):
        if token in vectors:
            table[i] = vectors[token] * factor
    return Words(vocabulary, table, _share(corpus.tokens, vectors))


def words_at_random(
    corpus: Corpus, train: np.ndarray, size: int, scale: float, min_count: int, seed: int
) -> Words:
    """The words of the training rows with random vectors, from which to train."""
    texts = [corpus.tokens[i] for i in train]
    vocabulary = Vocabulary.build(texts, min_count=min_count)
    rng = np.random.default_rng([seed, 3])
    table = rng.standard_normal((len(vocabulary), size), np.float32) * np.float32(scale)
    table[vocabulary.padding_index] = 0
    return Words(vocabulary, table, 0.0)


def words_of(
    corpus: Corpus, train: np.ndarray, settings: dict[str, Any], given: str, seed: int
) -> Words:
    """The words of a corpus as a run's settings have them.

    `given`: what the option said, "random" or a file.
    """
    scale = settings["embedding_scale"]
    if given != "random":
        return words_with_vectors(corpus, Path(given), scale)
    random = settings["embeddings"]
    return words_at_random(corpus, train, random["size"], scale, random["min_count"], seed)


def _share(texts: Sequence[list[str]], known: Collection[str]) -> float:
    total = sum(map(len, texts))
    return sum(token in known for tokens in texts for token in tokens) / max(total, 1)
