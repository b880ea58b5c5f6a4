"""From text to token numbers: tokenisers and the vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np

from penstock.training.checkpoints import write_text_atomically
from penstock.training.errors import UserError

PADDING = "<pad>"
UNKNOWN = "<unk>"

# A word may hold apostrophes and hyphens inside; anything else that is no space stands alone.
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")

#: Tokenisers by name. Each takes a text and returns its tokens, none of which holds white space.
TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "words": _WORD.findall,
    "whitespace": str.split,
    "characters": lambda text: ["▁" if char.isspace() else char for char in text],
}


#: Where a long text may be cut, by name. Each takes N tokens and returns n < N of them.
CUTS: dict[str, Callable[[list[str], int], list[str]]] = {
    "end": lambda tokens, n: tokens[:n],
    "start": lambda tokens, n: tokens[-n:],
    "middle": lambda tokens, n: tokens[: n - n // 2] + tokens[len(tokens) - n // 2 :],
}


class Tokenizer:
    """Splits text into tokens.

    Args:
        kind: "words" (words and punctuation marks apart), "whitespace" or "characters".
        lowercase: fold case first.
    """

    def __init__(self, kind: str = "words", *, lowercase: bool = True) -> None:
        if kind not in TOKENIZERS:
            raise ValueError(f"kind: expected one of {sorted(TOKENIZERS)}, got {kind!r}")
        self._split = TOKENIZERS[kind]
        self._lowercase = lowercase

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of `text`."""
        return self._split(text.lower() if self._lowercase else text)


class Vocabulary:
    """Numbers for tokens. 0 is padding, 1 stands for every token that is not listed.

    Args:
        tokens: the distinct tokens from number 2 on.
    """

    padding_index = 0
    unknown_index = 1

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = [PADDING, UNKNOWN, *tokens]
        self._index = {token: i for i, token in enumerate(self.tokens)}
        if len(self._index) != len(self.tokens):
            raise ValueError("tokens: expected distinct tokens, got some twice")

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def build(
        cls,
        texts: Iterable[list[str]],
        *,
        min_count: int = 1,
        known: Collection[str] = (),
    ) -> Vocabulary:
        """List the tokens of `texts` from the most to the least frequent, ties alphabetically.

        Args:
            texts: tokenised training texts.
            min_count: leave out tokens that occur less often.
            known: tokens kept (or added) however rare, because a vector for them was read.
        """
        counts: Counter[str] = Counter()
        for tokens in texts:
            counts.update(tokens)
        for token in known:
            counts.setdefault(token, 0)
        kept = [
            (-count, token)
            for token, count in counts.items()
            if (count >= min_count or token in known) and token not in (PADDING, UNKNOWN)
        ]
        return cls(token for _, token in sorted(kept))

    def encode(
        self, tokens: list[str], max_length: int | None = None, cut: str = "end"
    ) -> np.ndarray:
        """Return token numbers, int32 (L,), L >= 1: an empty text is one unknown token.

        Args:
            tokens: of one text.
            max_length: leave tokens out if there are more.
            cut: a name of `CUTS`, where to leave them out.
        """
        if max_length is not None and len(tokens) > max_length:
            tokens = CUTS[cut](tokens, max_length)
        ids = [self._index.get(token, self.unknown_index) for token in tokens]
        return np.asarray(ids or [self.unknown_index], dtype=np.int32)

    def save(self, path: Path) -> None:
        """Write one token per line, number 0 first, UTF-8."""
        write_text_atomically(path, "".join(f"{token}\n" for token in self.tokens))

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or holds something else.
        """
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the vocabulary {path}: {error}") from error
        # Not splitlines(): a token may be a character that Unicode counts as a line end.
        tokens = text.removesuffix("\n").split("\n")
        if tokens[:2] != [PADDING, UNKNOWN]:
            raise UserError(f"{path} is no vocabulary: expected it to begin with {PADDING}")
        try:
            return cls(tokens[2:])
        except ValueError as error:
            raise UserError(f"{path} is no vocabulary: {error}") from error
