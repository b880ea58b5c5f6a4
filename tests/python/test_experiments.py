"""The papers' experiments on a few sentences: what is kept, what is refused, what is printed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pandas")
pytest.importorskip("rich")

FOLDER = Path(__file__).resolve().parents[2] / "bench/experiments"
MODULES = ("corpora", "learning", "networks", "program", "records", "runner", "tables", "training")
FILES = ("cr", "subj", "mr", "trec.train", "mpqa", "sst2.train", "sst2.dev")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The experiments' modules, which lie beside their programs and in no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


def sentences(rows: int, classes: int = 2, words: int = 5, seed: int = 0) -> str:
    """A table in which one word of each text tells its class."""
    rng = random.Random(seed)
    lines = ["label\ttext"]
    for row in range(rows):
        label = row % classes
        text = [f"w{rng.randrange(20)}" for _ in range(rng.randrange(words - 2, words + 2))]
        text.insert(rng.randrange(len(text)), ("good", "bad", "odd", "sad")[label])
        lines.append(f"{label}\t{' '.join(text)}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        (tmp_path / f"{name}.tsv").write_text(sentences(60, seed=number))
    return tmp_path


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Vectors of most words, in GloVe's format."""
    rng = np.random.default_rng(0)
    words = ["good", "bad", *(f"w{i}" for i in range(15))]
    lines = [f"{word} {' '.join(f'{v:.4f}' for v in rng.normal(size=12))}" for word in words]
    path = tmp_path / "vectors.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def command(program: str, *arguments: object) -> list[str]:
    return [sys.executable, str(FOLDER / f"{program}.py"), *map(str, arguments)]


def environment() -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}


def called(program: str, *arguments: object, status: int = 0) -> str:
    """What a program prints."""
    done = subprocess.run(
        command(program, *arguments),
        capture_output=True, text=True, check=False, env=environment(), timeout=120,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return output


def records_of(path: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return list(json.loads(path.read_text())["records"])
    return []


# ---- records -----------------------------------------------------------------------------------


def record(data: str = "cr", model: str = "m", seed: int = 0, fold: int = 0, **more: Any) -> Any:
    return {"data": data, "model": model, "seed": seed, "fold": fold, "accuracy": 0.5, **more}


SETTINGS = {"epochs": 2, "models": {"m": {"lr": 0.1}}, "data": {"cr": {"cr.tsv": "0a"}}}


def test_records_are_kept_one_by_one(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    store = modules["records"].Store(path, SETTINGS, {"processor": "P"})
    assert not path.exists()
    for fold in range(3):
        store.add(record(fold=fold))
        assert [r["fold"] for r in records_of(path)] == list(range(fold + 1))
    with pytest.raises(ValueError, match="record: expected a new one"):
        store.add(record(fold=1))
    store.close()
    again = modules["records"].Store(path, SETTINGS, {"processor": "Q"})
    assert again.has(record(fold=2)) and not again.has(record(fold=3))
    again.add(record(fold=3))
    again.set("timing", {"threads": 1})
    again.close()
    content = json.loads(path.read_text())
    assert [r["machine"] for r in content["records"]] == [0, 0, 0, 1]
    assert content["machines"] == [{"processor": "P"}, {"processor": "Q"}]
    assert content["settings"] == SETTINGS and content["timing"] == {"threads": 1}
    lines = path.read_text().splitlines()
    assert sum('"accuracy"' in line for line in lines) == 4  # a line a record


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 3}, "epochs: 2 there, 3 now"),
        ({"models": {"m": {"lr": 0.2}}}, "models.m.lr: 0.1 there, 0.2 now"),
        ({"models": {"m": {"lr": 0.1, "x": 1}}}, "models.m.x: None there, 1 now"),
        ({"data": {"cr": {"cr.tsv": "0b"}}}, "data.cr.cr.tsv: '0a' there, '0b' now"),
    ],
)
def test_records_of_other_settings_are_refused(
    modules: dict[str, ModuleType], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    path = tmp_path / "r.json"
    store = modules["records"].Store(path, SETTINGS, {})
    store.add(record())
    store.close()
    before = path.read_bytes()
    with pytest.raises(modules["records"].UserError) as raised:
        modules["records"].Store(path, {**SETTINGS, **changed}, {})
    assert said in str(raised.value)
    assert path.read_bytes() == before


def test_records_of_more_models_and_data_are_taken(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    store = modules["records"].Store(path, SETTINGS, {})
    store.add(record())
    store.close()
    more = {**SETTINGS, "models": {"n": {"lr": 1}}, "data": {"mr": {"mr.tsv": "1"}}}
    store = modules["records"].Store(path, more, {})
    store.add(record(data="mr", model="n"))
    store.close()
    content = json.loads(path.read_text())
    assert content["settings"]["models"] == {"m": {"lr": 0.1}, "n": {"lr": 1}}
    assert set(content["settings"]["data"]) == {"cr", "mr"}


def test_a_file_has_one_writer(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    store = modules["records"].Store(path, SETTINGS, {})
    with pytest.raises(modules["records"].UserError, match="in use by another process"):
        modules["records"].Store(path, SETTINGS, {})
    store.close()
    modules["records"].Store(path, SETTINGS, {}).close()
    path.write_text("[1]")
    with pytest.raises(modules["records"].UserError, match="holds no records"):
        modules["records"].Store(path, SETTINGS, {})


# ---- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["It doesn't, it's well-made", "it does n 't , it 's well - made"])
def test_words_have_one_spelling(modules: dict[str, ModuleType], text: str) -> None:
    tokens = modules["corpora"].tokens_of(text)
    assert tokens == ["it", "doesn't", ",", "it's", "well", "-", "made"]


def test_splits(modules: dict[str, ModuleType], folder: Path) -> None:
    corpora = modules["corpora"]
    corpus = corpora.load_corpus("cr", folder / "cr.tsv")
    tested: list[int] = []
    for fold in range(10):
        train, dev, test = corpus.split(1, fold, 10)
        assert sorted([*train, *dev, *test]) == list(range(60))
        assert len(dev) == 6
        tested += test.tolist()
    assert sorted(tested) == list(range(60))
    sst = corpora.load_corpus("sst", folder / "sst2.train.tsv", folder / "sst2.dev.tsv")
    train, dev, test = sst.split(0, 0, 10)
    assert test.tolist() == list(range(60, 120)) and sst.folds(10) == 1
    assert sorted([*train, *dev]) == list(range(60))
    parts = corpus.split_in_tenths(0)
    assert [len(part) for part in parts] == [48, 6, 6]
    assert sorted(np.concatenate(parts)) == list(range(60))


def test_words_with_vectors(modules: dict[str, ModuleType], folder: Path, vectors: Path) -> None:
    corpora = modules["corpora"]
    corpus = corpora.load_corpus("cr", folder / "cr.tsv")
    words = corpora.words_with_vectors(corpus, vectors, 0.5)
    assert words.table.shape == (len(words.vocabulary), 12) and not words.table[0].any()
    assert 0.5 < words.found < 1
    given = dict(
        (line.split()[0], np.array(line.split()[1:], np.float32))
        for line in vectors.read_text().splitlines()
    )
    row = words.table[words.vocabulary.tokens.index("good")]
    np.testing.assert_allclose(row / row[0], given["good"] / given["good"][0], rtol=1e-4)
    assert 0.3 < words.table[1:].std() < 0.7
    assert words.table[words.vocabulary.tokens.index("w19")].any()  # not in the file
    again = corpora.words_with_vectors.__wrapped__(corpus, vectors, 0.5)
    np.testing.assert_array_equal(words.table, again.table)
    # The last words of a long text are kept, with padding in front where that is asked for.
    rows = words.examples(corpus, np.arange(4), max_length=3, pad="left", bucket=8)
    batch = rows.batch(np.arange(4))
    assert batch.inputs.shape == (8, 4) and not batch.inputs[:5].any()
    last = [words.vocabulary.tokens[number] for number in batch.inputs[5:, 0]]
    assert last == corpus.tokens[0][-3:]


# ---- networks ----------------------------------------------------------------------------------

ENCODERS: dict[str, dict[str, Any]] = {
    "sru": {"layers": 2}, "qrnn": {"layers": 2}, "gru": {"layers": 1, "pooling": "last"},
    "sliced-gru": {"slices": (2, 2), "pad": "left", "bucket": 12},
    "torch-lstm": {"layers": 2}, "torch-cnn": {}, "torch-dcnn": {"layers": 3, "pooling": "last"},
}  # fmt: skip


def built(
    modules: dict[str, ModuleType], corpus: Any, encoder: str, frozen: bool = True
) -> tuple[Any, Any]:
    """A network with its words."""
    from penstock.training import ModelOptions

    words = modules["corpora"].words_at_random(corpus, np.arange(60), 8, 1.0, 1, 0)
    base = {"layers": 1, "pooling": "max", **ENCODERS[encoder]}
    options = ModelOptions(
        classes=2, vocabulary_size=len(words.vocabulary), input_size=8, encoder=encoder,
        hidden=8, dropout=0.1, freeze_embeddings=frozen, seed=0, **base,
    )  # fmt: skip
    return modules["networks"].build(options, words.table, lambda step: 0.01, 5.0), words


@pytest.mark.parametrize("encoder", ENCODERS)
def test_networks_learn_and_do_not_see_padding(
    modules: dict[str, ModuleType], folder: Path, encoder: str
) -> None:
    corpus = modules["corpora"].load_corpus("cr", folder / "cr.tsv")
    network, words = built(modules, corpus, encoder)
    layout = {key: ENCODERS[encoder][key] for key in ("pad", "bucket") if key in ENCODERS[encoder]}
    rows = words.examples(corpus, np.arange(60), **layout)
    plan = modules["learning"].Plan(epochs=12, batch_size=6, lr=0.01)
    before = network.save()
    first = modules["learning"].evaluate(network, rows)
    done = modules["learning"].learn(network, rows, rows, plan, seed=0)
    last = modules["learning"].evaluate(network, rows)
    assert done["dev_accuracy"] == pytest.approx(last[0], abs=1e-6)  # the best epoch's weights
    assert last[0] > 0.9 and last[0] > first[0]
    network.restore(before)
    assert modules["learning"].evaluate(network, rows)[0] == first[0]
    network.restore(before)
    # A text's scores are its own, whatever else is in the batch.
    together = network.logits(rows.batch(np.arange(20)))
    alone = np.concatenate([network.logits(rows.batch(np.array([i]))) for i in range(20)])
    np.testing.assert_allclose(together, alone, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("encoder", ["sru", "torch-cnn"])
def test_words_are_trained_unless_frozen(
    modules: dict[str, ModuleType], folder: Path, encoder: str
) -> None:
    corpus = modules["corpora"].load_corpus("cr", folder / "cr.tsv")
    sizes = []
    for frozen in (True, False):
        network, words = built(modules, corpus, encoder, frozen)
        rows = words.examples(corpus, np.arange(60))
        network.step(rows.batch(np.arange(10)))
        table = np.asarray(network.save()["embedding.weight"])
        assert np.array_equal(table, words.table) == frozen
        assert not table[0].any()
        sizes.append(network.size())
    assert sizes[0] == sizes[1]  # the words are not counted


def test_cnn_is_what_is_published(modules: dict[str, ModuleType]) -> None:
    """Against the definition: maxima over all windows that touch the sentence."""
    import torch
    from penstock.training import ModelOptions

    table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    table[0] = 0
    options = ModelOptions(2, 9, 4, encoder="torch-cnn", layers=1)
    model = modules["networks"].Cnn(options, table).eval()
    tokens = np.array([[3, 1, 4], [1, 5, 2], [6, 5, 0], [8, 0, 0]], np.int64)
    lengths = np.array([4, 3, 2])
    with torch.no_grad():
        x = model.embedding(torch.from_numpy(tokens))
        found = model.encode(x, torch.from_numpy(lengths)).numpy()
    for row, length in enumerate(lengths):
        words = table[tokens[:length, row]]
        expected = []
        for window, convolution in zip(model.WINDOWS, model.convolutions, strict=True):
            weight, bias = (p.detach().numpy() for p in convolution.parameters())
            edge = np.zeros((window - 1, 4), np.float32)
            padded = np.concatenate([edge, words, edge])
            places = [
                np.einsum("fdk,kd->f", weight, padded[i : i + window]) + bias
                for i in range(length + window - 1)
            ]
            expected.append(np.maximum(places, 0).max(axis=0))
        np.testing.assert_allclose(found[row], np.concatenate(expected), rtol=1e-5, atol=1e-6)


def test_dilated_network_is_causal_and_sees_all(modules: dict[str, ModuleType]) -> None:
    import torch
    from penstock.training import ModelOptions

    table = np.eye(6, dtype=np.float32)
    options = ModelOptions(2, 6, 6, encoder="torch-dcnn", layers=3, hidden=64, pooling="last")
    torch.manual_seed(0)
    model = modules["networks"].Dcnn(options, table).eval()
    x = torch.randn(12, 1, 6, requires_grad=True)
    model.encode(x, torch.tensor([9])).sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().sum(dim=(1, 2)) > 0
    assert touched.tolist() == [False] + [True] * 8 + [False] * 3  # 2^3 words up to the ninth


# ---- the programs ------------------------------------------------------------------------------


def small(folder: Path, out: Path, *more: object) -> list[object]:
    return [
        folder, "--out", out, "--folds", 2, "--epochs", 1, "--processes", 1,
        "--models", "sru-2", "cnn", *more,
    ]  # fmt: skip


def test_sentences_end_to_end(folder: Path, vectors: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = small(folder, out, "--embeddings", vectors, "--data", "cr", "sst")
    printed = called("sentences", *arguments)
    records = records_of(out)
    # Two folds of cr, one of sst; two models; three seeds.
    assert len(records) == (2 + 1) * 2 * 3
    keys = {(r["data"], r["model"], r["seed"], r["fold"]) for r in records}
    assert len(keys) == len(records)
    assert all(0 <= r["accuracy"] <= 1 and r["cpu_seconds"] >= 0 for r in records)
    assert {r["rows"] for r in records if r["data"] == "cr"} == {30}
    table = called("sentences", *arguments, "--table")
    assert table in printed
    assert "| SRU, 2 layers |" in table and "| 2 of 2 × 3 |" in table
    # With other settings nothing is written.
    before = out.read_bytes()
    message = called("sentences", *arguments[:-1], "sst", "--folds", 3, status=1)
    assert "folds: 2 there, 3 now" in message
    message = called("sentences", *arguments, "--epochs", 2, status=1)
    assert "epochs: 1 there, 2 now" in message
    assert out.read_bytes() == before
    # Times stand beside the records.
    printed = called("sentences", *arguments, "--time", "--batches", 1, "--threads", 1)
    content = json.loads(out.read_text())
    assert content["records"] == records
    assert set(content["timing"]["models"]["cr"]) == {"sru-2", "cnn"}
    assert content["timing"]["models"]["cr"]["cnn"]["batches"] == 1
    assert "1 thread, 1 batch of each" in printed


def test_killed_and_started_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = small(folder, out, "--embeddings", "random", "--data", "cr", "--epochs", 3)
    whole = tmp_path / "whole.json"
    called("sentences", *[whole if value == out else value for value in arguments])
    process = subprocess.Popen(
        command("sentences", *arguments),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not records_of(out) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = records_of(out)
    assert 0 < len(kept) < 12
    called("sentences", *arguments)
    records = records_of(out)
    assert records[: len(kept)] == kept and len(records) == 12

    def told(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key != "cpu_seconds"}

    # What was computed in two goes is what is computed in one.
    assert [told(record) for record in records] == [told(r) for r in records_of(whole)]


def test_tuning_looks_at_no_test_row(folder: Path, vectors: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    called("sentences", folder, "--out", out, "--folds", 2, "--epochs", 1, "--processes", 1,
           "--embeddings", vectors, "--models", "cnn", "--data", "cr", "--tune")  # fmt: skip
    records = records_of(out)
    assert len(records) >= 2
    assert all("accuracy" not in r and 0 <= r["dev_accuracy"] <= 1 for r in records)


def test_reviews_end_to_end(tmp_path: Path, vectors: Path) -> None:
    data = tmp_path / "stars.tsv"
    data.write_text(sentences(60, classes=4, words=30).replace("label", "stars"))
    out = tmp_path / "r.json"
    arguments = [
        data, "--out", out, "--steps", 32, "--embeddings", vectors, "--epochs", 1,
        "--processes", 1, "--models", "gru", "srnn-4-3", "dcnn",
    ]  # fmt: skip
    message = called("reviews", *arguments, status=1)
    assert "--steps: expected a multiple of 64 for srnn-4-3, got 32" in message
    assert not out.exists()
    arguments[arguments.index(32)] = 64
    printed = called("reviews", *arguments)
    records = records_of(out)
    assert [(r["model"], r["seed"]) for r in records] == [
        (model, seed) for seed in range(3) for model in ("gru", "srnn-4-3", "dcnn")
    ]
    assert all(4 <= r["rows"] <= 8 for r in records)
    assert "| SRNN (4,3) |" in printed and "seeds 0 to 2" in printed
    printed = called("reviews", *arguments, "--time", "--batches", 1, "--threads", 1)
    assert set(json.loads(out.read_text())["timing"]["models"]["reviews"]) == set(arguments[-3:])
    assert "1 thread, 1 batch of each" in printed


# ---- tables ------------------------------------------------------------------------------------


def results(*records: dict[str, Any]) -> dict[str, Any]:
    machine = {"processor": "P", "isa": "avx2", "versions": {"penstock": "1"}}
    data = {"cr": {"cr.tsv": "0a"}, "sst": {"sst2.train.tsv": "1b", "sst2.dev.tsv": "2c"}}
    settings = {"folds": 10, "data": data}
    return {"records": list(records), "machines": [machine], "settings": settings}


def test_table_of_sentences(modules: dict[str, ModuleType]) -> None:
    records = [
        record(model="sru-2", seed=seed, fold=fold, accuracy=0.8 + 0.01 * seed + 0.1 * fold)
        for seed in range(3)
        for fold in range(2)
    ]
    # A fold that not all seeds have, a network with too few seeds, a data set of one split.
    records.append(record(model="sru-2", seed=0, fold=2, accuracy=0.0))
    records += [record(model="cnn", seed=seed, fold=0) for seed in range(2)]
    records += [
        record(data="sst", model="sru-2", seed=seed, accuracy=0.5 + 0.02 * seed)
        for seed in range(3)
    ]
    table = modules["tables"].sentences(results(*records))
    assert table.splitlines() == [
        "| network | CR | SST | folds × seeds |",
        "| --- | --- | --- | --- |",
        "| SRU, 2 layers | 86.0 ± 5.5 (1.0) | 52.0 ± 2.0 | 2 of 10 × 3 |",
        "",
        "P (avx2); penstock 1.",
    ]


def test_table_of_reviews(modules: dict[str, ModuleType]) -> None:
    records = [
        record(data="reviews", model=model, seed=seed, accuracy=0.4 + 0.01 * seed, parameters=1234)
        for model in ("srnn-8-2", "gru")
        for seed in range(3)
    ]
    table = modules["tables"].reviews(results(*records))
    assert table.splitlines()[2:4] == [
        "| GRU | 1,234 | 40.0, 41.0, 42.0 | 41.0 ± 1.0 |",
        "| SRNN (8,2) | 1,234 | 40.0, 41.0, 42.0 | 41.0 ± 1.0 |",
    ]


def test_table_of_times(modules: dict[str, ModuleType]) -> None:
    time_of = {
        "step_ms": 12.3, "step_ms_quartiles": [11.9, 13.2], "epoch_seconds": 4.56, "batches": 10,
    }  # fmt: skip
    content = results()
    content["timing"] = {
        "threads": 2, "machine": content["machines"][0], "models": {"reviews": {"gru": time_of}},
    }  # fmt: skip
    table = modules["tables"].REVIEWS["reviews, time"](content)
    assert "| GRU | 12 | 12 to 13 | 4.6 |" in table
    assert table.endswith("2 threads, 10 batches of each. P (avx2); penstock 1.")


# ---- the program's own training ------------------------------------------------------------------


def test_training_by_seed_goes_on_where_it_was(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = modules["training"]
    setting = program.Setting("imdb", "--model gru --hidden 4 --epochs 1 --test-fraction 0.2", 2)
    other = program.Setting("movies", setting.options)  # no such file is given
    monkeypatch.setattr(program, "SETTINGS", {"imdb, gru": setting, "movies, gru": other})
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    reviews, out = tmp_path / "reviews.tsv", tmp_path / "r.json"
    reviews.write_text(sentences(60))
    arguments = ["training.py", "--imdb", str(reviews), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    program.main()
    done = records_of(out)
    assert [(r["model"], r["seed"]) for r in done] == [("imdb, gru", 0), ("imdb, gru", 1)]
    assert all(r["evaluated_on"] == "test" and r["examples"]["test"] == 12 for r in done)
    assert all(0 <= r["accuracy"] <= 1 and r["seconds"] > 0 for r in done)

    monkeypatch.setattr(program, "train", lambda *given: pytest.fail("again"))
    program.main()
    assert records_of(out) == done
    reviews.write_text(sentences(61))
    with pytest.raises(SystemExit, match=r"data.imdb.reviews.tsv: .* there, .* now"):
        program.main()


def test_tables_of_training(modules: dict[str, ModuleType]) -> None:
    records = [
        record(data="imdb", model="imdb, gru", seed=seed, accuracy=0.8 + 0.01 * seed, seconds=3.0)
        for seed in range(3)
    ]
    records += [
        record(data="digits", model=name, accuracy=0.9, seconds=31.6)
        for name in modules["tables"]._DIGITS
    ]
    content = results(*records)
    assert "| IMDB | GRU | 2 | 80.0, 81.0, 82.0 | 81.0 ± 1.0 |" in modules["tables"].long_reviews(
        content
    )
    assert "| sliced GRU (8), 2 · 64 | 90.0 | – |" in modules["tables"].digits(content)
