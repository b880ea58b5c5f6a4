"""The training code behind ``penstock train``: data, models, the loop, exact resuming."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from penstock import nn
from penstock.training import (
    Interrupted,
    ModelOptions,
    RunError,
    RunObserver,
    SequenceClassifier,
    TrainConfig,
    TrainedModel,
    UserError,
    batching,
    checkpoints,
    digits,
    metrics,
    models,
    run_training,
    runs,
    tables,
)
from penstock.training.embeddings import read_embeddings
from penstock.training.models import register_encoder, spread_forget_biases
from penstock.training.pooling import POOLINGS
from penstock.training.text import Tokenizer, Vocabulary

COLOURS = ("red", "green", "blue")


def make_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences of filler words around one colour; the colour is the label."""
    rng = np.random.default_rng(seed)
    filler = ["the", "a", "of", "and", '"quoted', "word's", "x-ray", ",", "."]
    rows = []
    for i in range(count):
        words = list(rng.choice(filler, rng.integers(2, 12)))
        colour = COLOURS[i % 3]
        words.insert(int(rng.integers(0, len(words) + 1)), colour)
        rows.append((colour, " ".join(words)))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> Path:
    text = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return write_tsv(tmp_path / "colours.tsv", make_rows(240))


def small(data: Path | None, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {"hidden": 16, "layers": 1, "epochs": 3, "lr": 0.02}
    if data is not None:
        options |= {"data": str(data), "embedding_size": 12, "batch_size": 16}
    return TrainConfig(**{**options, **changes})


# -- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gzipped", [False, True])
def test_tsv_takes_quotation_marks_as_text(tmp_path: Path, gzipped: bool) -> None:
    rows = [("a", '"open'), ("b", 'x "y" z"'), ("a", ""), ("NA", "null"), ("b", "c\rd \x85 e")]
    path = write_tsv(tmp_path / ("t.tsv.gz" if gzipped else "t.tsv"), rows)
    table = tables.read_table(path)
    assert list(zip(table.labels, table.texts, strict=True)) == rows
    assert (table.label_column, table.text_column) == ("label", "text")


def test_csv_follows_its_quoting_rules(tmp_path: Path) -> None:
    rows = [("yes", 'a, "b"\nc'), ("no", "d")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["Review", "Stars"])
    writer.writerows([text, label] for label, text in rows)
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode())
    table = tables.read_table(path)
    assert table.texts == [text for _, text in rows]
    assert table.labels == ["yes", "no"]
    assert (table.label_column, table.text_column) == ("Stars", "Review")


def test_tsv_with_quoting_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('label\ttext\na\t"one\ttwo"\nb\tthree\n')
    assert tables.read_table(path, quotes=True).texts == ["one\ttwo", "three"]
    with pytest.raises(UserError, match=r"more fields than the header.*--quotes"):
        tables.read_table(path)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "is empty"),
        ("label\ttext\n", {}, "no rows"),
        ("kind\tphrase\na\tb\n", {}, r"columns found: 'kind', 'phrase'.*--text NAME"),
        ("kind\ttext\na\tb\n", {}, r"columns found: 'kind', 'text'.*--label NAME"),
        ("label\ttext\na\tb\n", {"label": "class"}, r"no label column 'class'.*'label', 'text'"),
        ("label\ttext\na\tb\n", {"label": "text"}, "the same column"),
        ("label\ttext\na\tb\n\tc\n", {}, "row 2 .* empty label"),
        ("text\tlabel\na\tb\nc\n", {}, "row 2 .* empty label"),
        ("label\ttext\na\tb\na\tb\tc\n", {}, "cannot parse .*line 3, saw 3.*--quotes"),
    ],
)
def test_unusable_tables(
    tmp_path: Path, content: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        tables.read_table(path, **options)


def test_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        tables.read_table(tmp_path / "none.tsv")
    with pytest.raises(UserError, match=r"ending in \.tsv"):
        tables.read_table(tmp_path / "x.xls")
    bad = tmp_path / "bad.tsv"
    bad.write_bytes(b"label\ttext\na\t\xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        tables.read_table(bad)
    cut = tmp_path / "cut.tsv.gz"
    cut.write_bytes(gzip.compress(b"label\ttext\n" + b"a\tb\n" * 5000)[:60])
    with pytest.raises(UserError, match="cannot read"):
        tables.read_table(cut)


def test_a_threshold_makes_two_classes(tmp_path: Path) -> None:
    rows = [("4", "a"), ("10", "b"), ("7", "c"), ("6.5", "d"), ("-1", "e")]
    path = write_tsv(tmp_path / "t.tsv", rows)
    table = tables.two_classes(tables.read_table(path), 7, path)
    assert table.labels == ["<7", ">=7", ">=7", "<7", "<7"]
    assert table.texts == [text for _, text in rows] and table.label_column == "label"
    for bad in ("many", "nan"):
        write_tsv(path, [("4", "a"), (bad, "b")])
        with pytest.raises(
            UserError, match=f"--threshold: expected numbers .* got '{bad}' in row 2"
        ):
            tables.two_classes(tables.read_table(path), 7, path)


def test_labels_sort_by_value_where_they_are_numbers() -> None:
    assert tables.sorted_labels(["10", "9", "1", "9"]) == ["1", "9", "10"]
    assert tables.sorted_labels(["b", "10", "9"]) == ["10", "9", "b"]


# -- text ---------------------------------------------------------------------------------------


def test_tokenizers() -> None:
    text = "It's x-ray, NO?"
    assert Tokenizer()(text) == ["it's", "x-ray", ",", "no", "?"]
    assert Tokenizer("whitespace", lowercase=False)(text) == ["It's", "x-ray,", "NO?"]
    assert Tokenizer("characters")("A b") == ["a", "▁", "b"]
    with pytest.raises(ValueError, match=r"kind: expected .* got 'syllables'"):
        Tokenizer("syllables")


def test_vocabulary_order_counts_and_file(tmp_path: Path) -> None:
    texts = [["b", "a", "c", "a"], ["b", "a", "\x85"], ["rare"]]
    vocabulary = Vocabulary.build(texts, min_count=2, known={"rare", "new"})
    assert vocabulary.tokens == ["<pad>", "<unk>", "a", "b", "rare", "new"]
    assert vocabulary.encode(["b", "c", "a"]).tolist() == [3, 1, 2]
    assert vocabulary.encode(["b", "c", "a"], max_length=1).tolist() == [3]
    assert vocabulary.encode([]).tolist() == [1]
    everything = Vocabulary.build(texts)
    everything.save(tmp_path / "v.txt")
    assert Vocabulary.load(tmp_path / "v.txt").tokens == everything.tokens
    (tmp_path / "v.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="is no vocabulary"):
        Vocabulary.load(tmp_path / "v.txt")


def test_where_long_texts_are_cut() -> None:
    vocabulary = Vocabulary("abcdefg")
    text = list("abcdefg")
    cuts = {"end": "abcd", "start": "defg", "middle": "abfg"}
    for cut, kept in cuts.items():
        assert [vocabulary.tokens[i] for i in vocabulary.encode(text, 4, cut)] == list(kept)
        assert len(vocabulary.encode(text, 7, cut)) == 7
    odd = vocabulary.encode(text, 5, "middle")
    assert [vocabulary.tokens[i] for i in odd] == list("abcfg")
    assert vocabulary.encode(text, 1, "middle").tolist() == [2]


# -- word vectors -------------------------------------------------------------------------------


def vector_file(path: Path, kind: str, words: list[str], vectors: np.ndarray) -> Path:
    lines = [f"{w} {' '.join(repr(float(x)) for x in v)}" for w, v in zip(words, vectors)]  # noqa: B905
    header = f"{len(words)} {vectors.shape[1]}\n".encode()
    if kind == "glove":
        data = "\n".join(lines).encode() + b"\n"
    elif kind == "word2vec-text":
        data = header + "\n".join(lines).encode() + b"\n"
    else:
        data = header + b"".join(
            word.encode() + b" " + struct.pack(f"<{len(v)}f", *v) + b"\n"
            for word, v in zip(words, vectors, strict=True)
        )
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", ["glove", "word2vec-text", "word2vec-binary"])
def test_word_vector_formats(tmp_path: Path, kind: str, suffix: str) -> None:
    words = ["the", ". . .", "red", "naïve", "0.5", "red"]
    if kind == "word2vec-binary":
        words[1] = "..."  # a space ends a word there
    vectors = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    path = vector_file(tmp_path / f"v.txt{suffix}", kind, words, vectors)
    found, size = read_embeddings(path, {"red", "naïve", "0.5", words[1], "absent"})
    assert size == 20
    assert set(found) == {"red", "naïve", "0.5", words[1]}
    for word, vector in found.items():
        np.testing.assert_array_equal(vector, vectors[words.index(word)])  # the first of two


def test_unusable_word_vectors(tmp_path: Path) -> None:
    vectors = np.ones((40, 50), np.float32)
    words = [f"w{i}" for i in range(40)]
    path = vector_file(tmp_path / "v.bin", "word2vec-binary", words, vectors)
    with pytest.raises(UserError, match="none of the 1 words"):
        read_embeddings(path, {"absent"})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="ends after 37 of 40 vectors"):
        read_embeddings(path, {"w0"})
    path.write_text("a 1 2 3\nb 1 2\n")
    with pytest.raises(UserError, match="line 2: expected a word and 3 numbers"):
        read_embeddings(path, {"a", "b"})
    path.write_text("a 1 2 3\nb 1 x 2\n")
    with pytest.raises(UserError, match="line 2: could not convert"):
        read_embeddings(path, {"a", "b"})
    path.write_text("hello\n")
    with pytest.raises(UserError, match="no word vectors"):
        read_embeddings(path, {"a"})
    with pytest.raises(UserError, match="no such file"):
        read_embeddings(tmp_path / "none", {"a"})


# -- batches and splits -------------------------------------------------------------------------


def test_batches_hold_every_example_once_and_pad_little() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 1001)
    batches = batching.shuffled_batches(lengths, 16, np.random.default_rng(3))
    assert len(batches) == 63
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(1001))
    padded = sum(lengths[b].max() * len(b) for b in batches)
    assert padded < 1.15 * lengths.sum()
    again = batching.shuffled_batches(lengths, 16, np.random.default_rng(3))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    other = batching.shuffled_batches(lengths, 16, np.random.default_rng(4))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(batches, other, strict=True))


def test_token_batch_is_time_major_and_padded() -> None:
    sequences = [np.array(s, np.int32) for s in ([5], [6, 7, 8], [9, 9])]
    examples = batching.TokenExamples(sequences, np.array([0, 1, 2]))
    inputs, lengths, labels = examples.batch(np.array([1, 0]))
    np.testing.assert_array_equal(inputs, [[6, 5], [7, 0], [8, 0]])
    assert lengths is not None and lengths.tolist() == [3, 1]
    assert labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="labels: expected 3"):
        batching.TokenExamples(sequences, np.array([0, 1]))


def test_token_batch_padded_on_the_left_and_to_a_bucket() -> None:
    sequences = [np.array(s, np.int32) for s in ([5], [6, 7, 8], [9, 9])]
    labels = np.array([0, 1, 2])
    examples = batching.TokenExamples(sequences, labels, pad="left")
    np.testing.assert_array_equal(examples.batch(np.array([1, 0])).inputs, [[6, 0], [7, 0], [8, 5]])
    examples = batching.TokenExamples(sequences, labels, pad="left", bucket=2)
    assert examples.steps is not None and examples.steps.tolist() == [2, 4, 2]
    np.testing.assert_array_equal(examples.batch(np.array([0, 2])).inputs, [[0, 9], [5, 9]])
    np.testing.assert_array_equal(examples.batch(np.array([1])).inputs[:, 0], [0, 6, 7, 8])
    right = batching.TokenExamples(sequences, labels, bucket=4)
    np.testing.assert_array_equal(right.batch(np.array([0])).inputs[:, 0], [5, 0, 0, 0])
    with pytest.raises(ValueError, match="pad: expected 'left' or 'right', got 'both'"):
        batching.TokenExamples(sequences, labels, pad="both")


def test_batches_of_equal_steps() -> None:
    rng = np.random.default_rng(0)
    sequences = [np.ones(n, np.int32) for n in rng.integers(1, 60, 501)]
    examples = batching.TokenExamples(sequences, np.zeros(501, int), bucket=16)
    steps = examples.steps
    assert steps is not None and (steps % 16 == 0).all() and (steps - examples.lengths < 16).all()
    for batches in (
        batching.shuffled_batches(examples.lengths, 20, np.random.default_rng(3), steps),
        batching.sorted_batches(examples.lengths, 20, steps),
    ):
        assert len(batches) == batching.batch_count(examples, 20)
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(501))
        assert all(len(set(steps[b])) == 1 and len(b) <= 20 for b in batches)
        assert sum(len(b) < 20 for b in batches) <= len(set(steps))
    plain = batching.TokenExamples(sequences, np.zeros(501, int))
    assert plain.steps is None and batching.batch_count(plain, 20) == 26


def test_splits_are_stratified() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    kept, held = batching.stratified_split(labels, 0.1, seed=1)
    assert np.bincount(labels[held]).tolist() == [6, 3, 1]
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))
    parts = batching.stratified_folds(labels, 7, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(100))
    assert {len(part) for part in parts} == {14, 15}
    for label in range(3):
        counts = [int((labels[part] == label).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1
    with pytest.raises(ValueError, match="folds"):
        batching.stratified_folds(labels, 101, seed=1)


# -- pooling and the model ----------------------------------------------------------------------


def reference_pool(name: str, x: np.ndarray, lengths: list[int], directions: int) -> np.ndarray:
    rows = []
    half = x.shape[2] // directions
    for b, length in enumerate(lengths):
        steps = x[:length, b]
        if name == "last":
            rows.append(np.concatenate([steps[-1, :half], steps[0, half:]]))
        else:
            rows.append(getattr(steps, name)(axis=0))
    return np.stack(rows)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_pooling_and_its_gradient(name: str, with_lengths: bool, directions: int) -> None:
    rng = np.random.default_rng(0)
    lengths = [4, 1, 6] if with_lengths else [6, 6, 6]
    x = rng.standard_normal((6, 3, 4))
    for b, length in enumerate(lengths):
        x[length:, b] = 0
    given = np.array(lengths) if with_lengths else None
    pooled = POOLINGS[name](x, given, directions)
    np.testing.assert_allclose(pooled.y, reference_pool(name, x, lengths, directions), rtol=1e-14)
    dy = rng.standard_normal(pooled.y.shape)
    dx = pooled.backprop(dy)
    assert dx.shape == x.shape
    for b, length in enumerate(lengths):
        assert (dx[length:, b] == 0).all()
        for t in range(length):
            for w in range(4):
                shifted = x.copy()
                shifted[t, b, w] += 1e-6
                slope = (
                    (POOLINGS[name](shifted, given, directions).y - pooled.y) * dy
                ).sum() / 1e-6
                assert dx[t, b, w] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(
    ("encoder", "tokens", "frozen"),
    [
        ("sru", True, False),
        ("sru", True, True),
        ("sru", False, False),
        ("gru", True, False),
        ("lstm", False, False),
        ("rnn", True, False),
        ("sliced-gru", True, False),
        ("sliced-lstm", False, False),
        ("sliced-rnn", True, True),
        ("sliced-sru", True, False),
    ],
)
def test_classifier_gradients(encoder: str, tokens: bool, frozen: bool) -> None:
    sliced = encoder.startswith("sliced")
    options = ModelOptions(
        classes=3,
        vocabulary_size=11 if tokens else 0,
        input_size=5,
        encoder=encoder,
        hidden=4,
        layers=1 if sliced else 2,
        bidirectional=True,
        pooling="mean",
        freeze_embeddings=frozen,
        memory=0 if encoder.endswith("rnn") else 10,
        slices=(2, 2),
        pad="left" if sliced else "right",
        seed=1,
    )
    model = SequenceClassifier(options)
    rng = np.random.default_rng(2)
    lengths = np.array([7, 3, 5])
    x = (
        rng.integers(1, 11, (7, 3)).astype(np.int32)
        if tokens
        else rng.standard_normal((7, 3, 5)).astype(np.float32)
    )
    labels = np.array([0, 2, 1])

    def loss() -> float:
        logits = model(x, lengths=lengths).y.astype(np.float64)
        return metrics.cross_entropy(logits, labels)

    output = model(x, lengths=lengths, need_grad=True)
    grads = output.backprop(nn.softmax_cross_entropy(output.y, labels).backprop())
    parameters = model.parameters()
    assert grads.dparameters.keys() == parameters.keys()
    assert ("embedding.weight" in parameters) == (tokens and not frozen)
    for name, parameter in parameters.items():
        direction = rng.standard_normal(parameter.shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        original = parameter.copy()
        step = 1e-2
        parameter[...] = original + step * direction
        above = loss()
        parameter[...] = original - step * direction
        below = loss()
        parameter[...] = original
        slope = float((grads.dparameters[name] * direction).sum())
        assert slope == pytest.approx((above - below) / (2 * step), abs=2e-4), name


def test_without_need_grad_nothing_is_kept() -> None:
    model = SequenceClassifier(ModelOptions(classes=2, vocabulary_size=5, input_size=3, hidden=2))
    with pytest.raises(RuntimeError, match="need_grad"):
        model(np.ones((2, 1), np.int32)).backprop(np.ones((1, 2), np.float32))


def test_spread_forget_biases() -> None:
    biases = np.zeros((2, 500), np.float32)
    spread_forget_biases(biases, 64, np.random.default_rng(0))
    memory = 1 + np.exp(biases)  # 1 / (1 - sigmoid(b))
    assert memory.min() >= 2 and memory.max() <= 64
    assert memory.mean() == pytest.approx(33, abs=2)


@pytest.mark.parametrize("encoder", ["gru", "lstm", "sliced-gru", "sliced-lstm", "sliced-sru"])
def test_memory_is_of_the_gate_that_forgets(encoder: str) -> None:
    sliced = encoder.startswith("sliced")
    options = ModelOptions(
        classes=2, vocabulary_size=0, input_size=3, encoder=encoder, hidden=200,
        layers=1 if sliced else 2, memory=64, slices=(2,),
    )  # fmt: skip
    parameters = SequenceClassifier(options).encoder.parameters()
    for i in range(2):
        prefix = f"{'levels' if sliced else 'layers'}.{i}"
        if encoder == "sliced-sru":
            forget = parameters[f"{prefix}.bias"][0, 0]
        else:
            both = parameters[f"{prefix}.bias_ih"] + parameters[f"{prefix}.bias_hh"]
            gates = both.reshape(-1, 200)
            forget = gates[1]
            if encoder.endswith("lstm"):
                np.testing.assert_array_equal(gates[0], -forget)
            assert np.abs(gates[2]).max() < 0.2  # as drawn
        memory = 1 + np.exp(forget)
        assert memory.min() >= 1.99 and memory.max() <= 64.01
        assert memory.mean() == pytest.approx(33, abs=4)


def test_what_an_encoder_cannot_have() -> None:
    def model(**options: Any) -> SequenceClassifier:
        return SequenceClassifier(
            ModelOptions(classes=2, vocabulary_size=0, input_size=1, slices=(2,), **options)
        )

    with pytest.raises(UserError, match="--layers: expected 1, since the levels"):
        model(encoder="sliced-gru", layers=2)
    with pytest.raises(UserError, match="--memory: the layer rnn has no gates"):
        model(encoder="rnn", memory=9)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"--model: expected one of .*sru.*got 'nope'"):
        SequenceClassifier(ModelOptions(classes=2, vocabulary_size=0, input_size=1, encoder="nope"))
    with pytest.raises(UserError, match=r"--pooling: expected one of last, max, mean"):
        SequenceClassifier(ModelOptions(classes=2, vocabulary_size=0, input_size=1, pooling="min"))
    with pytest.raises(ValueError, match="'sru' is registered already"):
        register_encoder("sru")(lambda options, seed: None)


def test_another_encoder_needs_one_registration(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that yields one vector per sequence, as a sliced network does."""

    class SumGrads(NamedTuple):
        dx: Any
        dparameters: dict[str, Any]

    class Sum(nn.Layer):
        def __init__(self, options: ModelOptions, seed: int) -> None:
            super().__init__()
            self.linear = nn.Linear(options.input_size, options.hidden, seed=seed)

        def __call__(self, x: Any, *, lengths: Any = None, **mode: Any) -> Any:
            valid = (np.arange(len(x))[:, None] < lengths)[:, :, None].astype(np.float32)
            output = self.linear((x * valid).sum(axis=0), **mode)

            def backprop(dy: Any) -> SumGrads:
                grads = output.backprop(dy)
                named = nn.prefix_gradients(linear=grads.dparameters)
                return SumGrads(valid * grads.dx, named)

            return nn.LinearOutput(output.y, backprop)

    monkeypatch.setattr(models, "_ENCODERS", dict(models._ENCODERS))
    register_encoder("sum")(Sum)
    result = run_training(small(colours, model="sum", epochs=4), tmp_path / "run")
    assert result["accuracy"] > 0.9
    assert TrainedModel(tmp_path / "run").score_texts(["red"]).argmax() == 2


# -- metrics ------------------------------------------------------------------------------------


def test_report() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2])
    predicted = np.array([0, 1, 1, 1, 0, 1])
    logits = np.log(np.full((6, 3), 0.1) + 0.7 * np.eye(3)[predicted])
    figures = metrics.report(labels, logits, ["a", "b", "c"])
    assert figures["accuracy"] == 0.5
    assert figures["confusion_matrix"] == [[1, 1, 0], [1, 2, 0], [0, 1, 0]]
    assert figures["per_class"]["b"]["precision"] == 0.5
    assert figures["per_class"]["b"]["recall"] == pytest.approx(2 / 3)
    assert figures["macro_f1"] == pytest.approx((0.5 + 4 / 7 + 0) / 3)
    assert figures["loss"] == pytest.approx(-(np.log(0.8 / 1) + np.log(0.1)) / 2)
    huge = np.array([[1e4, 0.0], [-1e4, 0.0]])
    np.testing.assert_array_equal(metrics.softmax(huge), [[1, 0], [0, 1]])
    assert metrics.cross_entropy(huge, np.array([0, 0])) == pytest.approx(5e3)


# -- checkpoints --------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    state = {
        "model": {"a.b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.int64(3)},
        "scalar": np.asarray(7, np.int64),
        "random": rng.bit_generator.state,
        "history": [{"loss": 0.1 + 0.2, "ok": True, "none": None}],
    }
    path = tmp_path / "c.safetensors"
    checkpoints.save_checkpoint(path, state)
    loaded = checkpoints.load_checkpoint(path)
    np.testing.assert_array_equal(loaded["model"]["a.b"], state["model"]["a.b"])
    assert loaded["model"]["n"] == 3
    assert loaded["scalar"].shape == () and loaded["scalar"] == 7
    assert loaded["history"] == state["history"]
    assert loaded["random"] == state["random"]
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    with pytest.raises(TypeError, match=r"bad: cannot be stored.*set"):
        checkpoints.save_checkpoint(path, {"bad": {1}})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        checkpoints.load_checkpoint(path)


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    checkpoints.write_json_atomically(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.write_json_atomically(path, {"a": float("nan")})
    with pytest.raises(RuntimeError):
        checkpoints._replace_atomically(path, _failing_write)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def _failing_write(path: Path) -> None:
    path.write_text("part")
    raise RuntimeError


# -- runs ---------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run_training(small(colours, epochs=6, test_fraction=0.2), folder)
    assert result["accuracy"] > 0.9 and result["evaluated_on"] == "test"
    assert result == json.loads((folder / "metrics.json").read_text())
    assert result["examples"] == {"train": 174, "dev": 18, "test": 48}
    assert len(result["history"]) == 6
    assert result["history"][-1]["train_loss"] < 0.5 * result["history"][0]["train_loss"]
    assert (np.array(result["confusion_matrix"]).sum(axis=1) == 16).all()
    assert result["config"]["hidden"] == 16 and result["versions"]["numpy"] == np.__version__
    assert (folder / "learning_curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    best = max(result["history"], key=lambda e: (e["dev_accuracy"], -e["dev_loss"]))
    assert result["best_epoch"] == best["epoch"]
    assert result["dev"]["loss"] == pytest.approx(best["dev_loss"], rel=1e-5)

    model = TrainedModel(folder)
    logits = model.score_texts(["a red word", "the blue , of", "zebra", ""])
    assert [model.labels[i] for i in logits[:2].argmax(axis=1)] == ["red", "blue"]
    part, held_out = model.evaluate_held_out()
    assert (part, held_out["accuracy"]) == ("test", result["accuracy"])
    figures = model.evaluate_file(write_tsv(tmp_path / "more.tsv", make_rows(30, seed=9)))
    assert figures["examples"] == 30 and figures["accuracy"] > 0.9
    strange = write_tsv(tmp_path / "strange.tsv", [("pink", "x"), ("red", "y")])
    with pytest.raises(UserError, match="labels the model does not know: pink"):
        model.evaluate_file(strange)
    with pytest.raises(UserError, match="holds a run already"):
        run_training(small(colours), folder)


@pytest.mark.parametrize("pad", ["left", "right"])
def test_a_sliced_run_scores_each_text_alone(colours: Path, tmp_path: Path, pad: str) -> None:
    options: dict[str, Any] = {
        "model": "sliced-gru", "slices": "2,3", "pad": pad, "epochs": 8, "embedding_scale": 1.0,
    }  # fmt: skip
    result = run_training(small(colours, **options), tmp_path / "run")
    assert result["accuracy"] > 0.9
    config = result["config"]
    assert (config["layers"], config["bucket"], config["pooling"]) == (1, 6, "last")
    model = TrainedModel(tmp_path / "run")
    assert model.options.slices == (2, 3)
    assert (model.options.pad, model.options.bucket) == (pad, 6)
    texts = [text for _, text in make_rows(40, seed=5)]
    together = model.score_texts(texts)
    for text, scores in zip(texts, together, strict=True):
        np.testing.assert_allclose(model.score_texts([text])[0], scores, rtol=1e-5, atol=1e-6)
    part, held_out = model.evaluate_held_out()
    assert (part, held_out["accuracy"]) == ("dev", result["accuracy"])


def test_two_classes_from_start_to_evaluation(tmp_path: Path) -> None:
    rows = [(str(1 + (i % 5)), ("good" if i % 5 >= 3 else "bad") + f" x{i}") for i in range(200)]
    data = write_tsv(tmp_path / "stars.tsv", rows)
    result = run_training(small(data, threshold=4.0), tmp_path / "run")
    assert result["labels"] == ["<4", ">=4"] and result["accuracy"] > 0.9
    model = TrainedModel(tmp_path / "run")
    assert model.evaluate_file(data)["accuracy"] > 0.9
    assert model.evaluate_held_out()[1]["accuracy"] == result["accuracy"]


def test_a_checkpoint_of_an_older_version_is_resumed(colours: Path, tmp_path: Path) -> None:
    options = {"schedule": "constant"}
    run_training(small(colours, epochs=2, **options), tmp_path / "run")
    new = ("slices", "pad", "bucket", "cut", "threshold", "embedding_scale")
    path = tmp_path / "run" / "checkpoint.safetensors"
    state = checkpoints.load_checkpoint(path)
    for name in new:
        assert state["identity"].pop(name) is None
    checkpoints.save_checkpoint(path, state)
    for name, tables_of_names in (("config.json", []), ("model.json", ["model", "input"])):
        values = json.loads((tmp_path / "run" / name).read_text())
        for table in (values, *(values[key] for key in tables_of_names)):
            for key in new:
                table.pop(key, None)
        (tmp_path / "run" / name).write_text(json.dumps(values))
    config = runs.resume_config(tmp_path / "run", {"epochs": 3})
    assert TrainedModel(tmp_path / "run").score_texts(["red"]).shape == (1, 3)
    assert run_training(config, tmp_path / "run", resume=True)["epochs"] == 3


OPTIONS: list[dict[str, Any]] = [
    {"model": "gru", "layers": 2, "memory": 8, "dropout": 0.2},
    {"model": "lstm", "bidirectional": True, "pooling": "last"},
    {"model": "rnn", "pooling": "mean"},
    {"model": "sliced-lstm", "slices": "3", "max_length": 8, "cut": "middle", "bucket": 8},
    {"model": "sliced-rnn", "bidirectional": True, "pad": "right"},
    {"model": "sliced-sru", "slices": "2,2", "memory": 4, "folds": 2},
    {"bidirectional": True, "layers": 2, "dropout": 0.2, "pooling": "last"},
    {"pooling": "mean", "schedule": "constant", "weight_decay": 0.01, "clip_norm": 0.0},
    {"tokenizer": "whitespace", "lowercase": False, "min_count": 1, "max_length": 5},
    {"tokenizer": "characters", "memory": 20, "limit": 60},
    {"dev_fraction": 0.0, "epochs": 1},
    {"folds": 3, "epochs": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_options(colours: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    changes = {"epochs": 1, "limit": 120, **options}
    result = run_training(small(colours, **changes), tmp_path / "run")
    if "folds" in options:
        assert np.array(result["confusion_matrix"]).sum() == 120
        assert len(result["folds"]) == options["folds"]
        mean = np.mean([fold["accuracy"] for fold in result["folds"]])
        assert result["accuracy"] == pytest.approx(mean)
        with pytest.raises(UserError, match="one model for each fold"):
            TrainedModel(tmp_path / "run")
        TrainedModel(tmp_path / "run" / "fold-2").score_texts(["red"])
    elif options.get("dev_fraction") == 0.0:
        assert result["accuracy"] is None and result["best_epoch"] == 1
    else:
        assert np.isfinite(result["loss"])


def test_dev_and_test_files(colours: Path, tmp_path: Path) -> None:
    dev = write_tsv(tmp_path / "dev.tsv.gz", make_rows(30, seed=1))
    test = write_tsv(tmp_path / "test.tsv", make_rows(24, seed=2))
    result = run_training(small(colours, dev=str(dev), test=str(test)), tmp_path / "run")
    assert result["examples"] == {"train": 240, "dev": 30, "test": 24}
    bad = write_tsv(tmp_path / "bad.tsv", [("pink", "x")])
    with pytest.raises(UserError, match=r"labels that .* lacks: \['pink'\]"):
        run_training(small(colours, dev=str(bad)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_pretrained_embeddings(colours: Path, tmp_path: Path) -> None:
    words = ["red", "green", "unused"]
    vectors = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    path = vector_file(tmp_path / "v.txt", "glove", words, vectors)
    options = {"embeddings": str(path), "min_count": 200, "epochs": 1}
    run_training(small(colours, freeze_embeddings=True, **options), tmp_path / "frozen")
    model = TrainedModel(tmp_path / "frozen")
    assert model.options.input_size == 9
    assert model.vocabulary is not None and model.model.embedding is not None
    assert "unused" not in model.vocabulary.tokens
    table = model.model.embedding.weight
    for word, vector in zip(words[:2], vectors, strict=False):
        np.testing.assert_array_equal(table[model.vocabulary.tokens.index(word)], vector)
    assert "embedding.weight" not in model.model.parameters()
    run_training(small(colours, **options), tmp_path / "tuned")
    tuned = TrainedModel(tmp_path / "tuned")
    assert tuned.vocabulary is not None and tuned.model.embedding is not None
    row = tuned.model.embedding.weight[tuned.vocabulary.tokens.index("red")]
    assert 0 < np.abs(row - vectors[0]).max() < 1


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 1.0), ({"model": "gru"}, 0.1), ({"model": "sliced-gru", "embedding_scale": 0.5}, 0.5)],
)
def test_spread_of_random_embeddings(
    colours: Path, tmp_path: Path, options: dict[str, Any], scale: float
) -> None:
    options = {"embedding_size": 200, "epochs": 1, "lr": 1e-6, **options}
    run_training(small(colours, **options), tmp_path / "run")
    embedding = TrainedModel(tmp_path / "run").model.embedding
    assert embedding is not None
    assert embedding.weight[1:].std() == pytest.approx(scale, rel=0.05)
    assert (embedding.weight[0] == 0).all()


class Recorder(RunObserver):
    """Counts batches and stops the run after some of them, as a kill would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.batches = 0
        self.stop_after = stop_after

    def batch_done(self, mean_loss: float) -> None:
        self.batches += 1
        if self.batches == self.stop_after:
            raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, bytes]:
    state = checkpoints.load_checkpoint(folder / "checkpoint.safetensors")
    arrays = {f"model/{name}": value for name, value in state["model"].items()}
    arrays |= {f"optimizer/{name}": value for name, value in state["optimizer"].items()}
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    result = json.loads(json.dumps(result))
    for entry in [result, *result.get("history", [])]:
        for key in ("seconds", "seconds_per_epoch", "config", "machine"):
            entry.pop(key, None)
    return result


@pytest.mark.parametrize("model", ["sru", "gru", "sliced-gru"])
def test_resuming_gives_the_same_bits(colours: Path, tmp_path: Path, model: str) -> None:
    options = {
        "model": model,
        "dropout": 0.3,
        "layers": 1 if model.startswith("sliced") else 2,
        "bidirectional": True,
        "checkpoint_every": 0.0,
    }
    whole = run_training(small(colours, **options), tmp_path / "whole")
    counter = Recorder()
    run_training(small(colours, **options), tmp_path / "again", observer=counter)
    assert weights(tmp_path / "whole") == weights(tmp_path / "again")
    per_epoch = counter.batches // 3
    # Within the first epoch, at the last batch of an epoch, and within the last epoch.
    for stops in ([3], [per_epoch], [2, per_epoch + 4, per_epoch]):
        folder = tmp_path / f"stopped-{stops}"
        for i, stop in enumerate(stops):
            with pytest.raises(KeyboardInterrupt):
                run_training(
                    small(colours, **options),
                    folder,
                    resume=i > 0,
                    observer=Recorder(stop),
                )
            assert not (folder / "metrics.json").exists()
        resumed = run_training(small(colours, **options), folder, resume=True)
        assert weights(folder) == weights(tmp_path / "whole")
        assert without_times(resumed) == without_times(whole)
        kept, expected = (load_file(d / "model.safetensors") for d in (folder, tmp_path / "whole"))
        assert {k: v.tobytes() for k, v in kept.items()} == {
            k: v.tobytes() for k, v in expected.items()
        }


def test_resuming_before_the_first_checkpoint_starts_again(colours: Path, tmp_path: Path) -> None:
    whole = run_training(small(colours), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_training(small(colours), tmp_path / "run", observer=Recorder(1))
    resumed = run_training(small(colours), tmp_path / "run", resume=True)
    assert without_times(resumed) == without_times(whole)


def test_resuming_folds(colours: Path, tmp_path: Path) -> None:
    options = {"folds": 2, "epochs": 2, "limit": 90, "checkpoint_every": 0.0}
    whole = run_training(small(colours, **options), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_training(small(colours, **options), tmp_path / "run", observer=Recorder(8))
    assert (tmp_path / "run" / "fold-2" / "checkpoint.safetensors").exists()
    counter = Recorder()
    resumed = run_training(
        small(colours, **options), tmp_path / "run", resume=True, observer=counter
    )
    assert counter.batches < 8
    assert resumed["folds"] == whole["folds"]


def test_training_on_with_more_epochs(colours: Path, tmp_path: Path) -> None:
    options = {"schedule": "constant"}
    run_training(small(colours, epochs=4, **options), tmp_path / "long")
    run_training(small(colours, epochs=2, **options), tmp_path / "run")
    config = runs.resume_config(tmp_path / "run", {"epochs": 4})
    run_training(config, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "long")


def test_what_may_not_change_when_resuming(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_training(small(colours, epochs=1), folder)
    with pytest.raises(UserError, match=r"--hidden: the run in .* was started with 16, got 32"):
        runs.resume_config(folder, {"hidden": 32})
    with pytest.raises(UserError, match=r"--epochs: .* cosine"):
        runs.resume_config(folder, {"epochs": 9})
    moved = colours.with_name("moved.tsv")
    colours.rename(moved)
    config = runs.resume_config(folder, {"data": str(moved)})
    assert run_training(config, folder, resume=True)["epochs"] == 1
    write_tsv(moved, make_rows(240, seed=8))
    with pytest.raises(UserError, match=r"the data file of the run in .* has changed"):
        run_training(config, folder, resume=True)
    with pytest.raises(UserError, match="holds no run"):
        runs.resume_config(tmp_path, {})


def test_early_stopping_keeps_the_best(colours: Path, tmp_path: Path) -> None:
    result = run_training(
        small(colours, epochs=40, patience=2, lr=0.05, schedule="constant"), tmp_path / "run"
    )
    history = result["history"]
    assert len(history) == result["best_epoch"] + 2 < 40
    best = max(
        range(len(history)), key=lambda i: (history[i]["dev_accuracy"], -history[i]["dev_loss"])
    )
    assert best + 1 == result["best_epoch"]


def test_a_diverging_run_says_so(colours: Path, tmp_path: Path) -> None:
    with (
        np.errstate(all="ignore"),
        pytest.raises(RunError, match=r"loss became \S+ in epoch 1, batch \d+; try a smaller --lr"),
    ):
        run_training(small(colours, lr=1e30, clip_norm=0.0, schedule="constant"), tmp_path / "run")


def test_a_signal_writes_a_checkpoint_and_stops(colours: Path, tmp_path: Path) -> None:
    import os
    import signal

    class Terminator(RunObserver):
        batches = 0

        def batch_done(self, mean_loss: float) -> None:
            self.batches += 1
            if self.batches == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_training(small(colours), tmp_path / "run", observer=Terminator())
    assert signal.getsignal(signal.SIGTERM) is before
    state = checkpoints.load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert state["progress"]["batch"] in (5, 6)
    run_training(small(colours), tmp_path / "run", resume=True)
    run_training(small(colours), tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs: expected at least 1, got 0"),
        ({"slices": "2"}, "--slices: expected a sliced model, such as .* got sru"),
        ({"model": "gru", "pad": "left"}, "--pad: expected a sliced model"),
        ({"data": "x.tsv", "model": "lstm", "bucket": 8}, "--bucket: expected a sliced model"),
        ({"model": "sliced-gru", "slices": "8;8"}, "--slices: expected numbers of parts, like 8,8"),
        ({"model": "sliced-gru", "slices": "8,0"}, "--slices: expected numbers of parts"),
        ({"model": "sliced-gru", "slices": ""}, "--slices: expected numbers of parts"),
        ({"model": "sliced-gru", "layers": 2}, "--layers: expected 1 with sliced-gru"),
        ({"model": "sliced-gru", "pooling": "max"}, "--pooling: expected none with sliced-gru"),
        ({"model": "rnn", "memory": 8}, "--memory: expected 0 with rnn"),
        ({"embedding_scale": 0.0}, "--embedding-scale: expected a number above 0, got 0"),
        ({"embedding_scale": 1.0}, "--embedding-scale needs a data file"),
        (
            {"data": "x.tsv", "embedding_scale": 1.0, "embeddings": "y"},
            "--embedding-scale is of random embeddings",
        ),
        ({"data": "x.tsv", "cut": "start"}, "--cut needs --max-length"),
        ({"data": "x.tsv", "threshold": float("inf")}, "--threshold: expected a finite number"),
        ({"dropout": 1.0}, "--dropout: expected at least 0 and below 1"),
        ({"lr": float("nan")}, "--lr"),
        ({"folds": 1}, "--folds: expected 2 or more"),
        ({"folds": 3, "test_fraction": 0.1}, "leave out --test"),
        ({"folds": 3, "data": "x.tsv", "dev": "y.tsv"}, "leave out --dev"),
        ({"freeze_embeddings": True, "data": "x.tsv"}, "needs --embeddings"),
        ({"label": "x"}, "--label needs a data file"),
        ({"data": "x.tsv", "test": "y.tsv", "test_fraction": 0.1}, "not both"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nope"}, "--model: expected one of"),
        ({"model": "sliced-gru", "pad": "both"}, "--pad: expected one of left, right, got 'both'"),
        ({"cut": "x", "max_length": 3}, "--cut: expected one of end, start, middle, got 'x'"),
        ({"threshold": 2.0}, "--threshold: expected numbers in column 'label'"),
        ({"pooling": "nope"}, "--pooling: expected one of"),
        ({"tokenizer": "nope"}, "--tokenizer: expected one of"),
        ({"schedule": "nope"}, "--schedule: expected one of"),
        ({"device": "tpu"}, "--device: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"folds": 500}, "--folds: expected at most 240"),
        ({"label": "text", "text": "label"}, "is it the label column"),
    ],
)
def test_bad_options_of_a_run(
    colours: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_training(small(colours, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_label_is_not_enough(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "one.tsv", [("a", "b")] * 8)
    with pytest.raises(UserError, match="two labels or more"):
        run_training(small(path), tmp_path / "run")


def test_no_trained_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trained model"):
        TrainedModel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not finished its first epoch"):
        TrainedModel(tmp_path)


# -- digits -------------------------------------------------------------------------------------


def test_digits_are_read_pixel_by_pixel() -> None:
    features, labels = digits.load_digits()
    assert features.shape == (1797, 64, 1) and features.dtype == np.float32
    assert features.min() == -1 and features.max() == 1
    assert sorted(set(labels)) == list(range(10))


def test_a_digits_run(tmp_path: Path) -> None:
    result = run_training(small(None, limit=300, epochs=1), tmp_path / "run")
    assert result["examples"]["test"] == pytest.approx(60, abs=5)
    model = TrainedModel(tmp_path / "run")
    part, figures = model.evaluate_held_out()
    assert (part, figures["accuracy"]) == ("test", result["accuracy"])
    pixels = digits.read_pixels(io.StringIO(" ".join(["0", "16"] * 32) + "\n\n"), "x")
    assert model.score_features(pixels).shape == (1, 10)
    with pytest.raises(UserError, match="not on text"):
        model.score_texts(["one"])
    with pytest.raises(UserError, match=r"x: line 1: expected 64 numbers .* got 3 numbers"):
        digits.read_pixels(io.StringIO("1,2,3\n"), "x")
    with pytest.raises(UserError, match=r"from 0 to 17"):
        digits.read_pixels(io.StringIO(",".join(["0", "17"] * 32)), "x")
