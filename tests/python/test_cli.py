"""The command ``penstock``, as a person types it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import penstock
from penstock.cli import main

SMALL = [
    "--hidden",
    "12",
    "--layers",
    "1",
    "--embedding-size",
    "8",
    "--epochs",
    "4",
    "--lr",
    "0.03",
]


def write_data(path: Path, count: int = 120, seed: int = 0) -> Path:
    """Sentences whose label is whether they hold "good" or "bad"."""
    rng = np.random.default_rng(seed)
    lines = ["label\ttext"]
    for i in range(count):
        words = list(rng.choice(["a", "the", "film", '"', "very"], rng.integers(1, 8)))
        words.insert(int(rng.integers(0, len(words) + 1)), ("bad", "good")[i % 2])
        lines.append(f"{('minus', 'plus')[i % 2]}\t{' '.join(words)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.tsv and a run on it."""
    path = tmp_path_factory.mktemp("trained")
    write_data(path / "data.tsv")
    arguments = ["train", str(path / "data.tsv"), *SMALL, "--out", str(path / "run"), "--quiet"]
    assert main(arguments) == 0
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "penstock.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """The environment for a child that must find the same penstock."""
    package = Path(penstock.__file__).parents[1]
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "100"}


def run_command(
    *arguments: object, cwd: Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment(),
        timeout=120,
        check=False,
    )


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("info", "train", "evaluate", "predict"):
        assert name in text
    assert main(["train", "-h"]) == 0
    assert "--freeze-embeddings" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {penstock.__version__}\n"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert penstock.__version__ in text and "CUDA" in text
    assert main(["info", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["version"] == penstock.__version__
    assert values["cuda_available"] or values["cuda_status"]


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocker())
from penstock.cli import main
sys.exit(main({arguments!r}))
"""


def run_without(
    blocked: set[str], arguments: list[str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    script = BLOCKER.format(blocked=blocked, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )


def test_info_needs_no_extras(folder: Path) -> None:
    extras = {"pandas", "sklearn", "matplotlib", "scipy", "cupy", "torch"}
    result = run_without(extras, ["info"], folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert "CUDA" in result.stdout


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_missing_extras_are_named(folder: Path, missing: str) -> None:
    result = run_without({missing}, ["train", "--limit", "60", "--epochs", "1"], folder)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"needs {missing}" in result.stderr
    assert "pip install '.[train]' in a clone of penstock" in result.stderr
    assert not (folder / "penstock-runs").exists()


def test_a_missing_command_line_library_is_named(folder: Path) -> None:
    result = run_without({"typer"}, ["info"], folder)
    assert result.returncode == 2
    assert result.stderr.startswith("penstock: error: the command needs typer")


def test_training_says_what_it_did_and_what_comes_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(folder / "data.tsv")
    assert main(["train", "data.tsv", *SMALL, "--test-fraction", "0.2"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "Training in penstock-runs/data"
    assert lines[1] == "120 sequences, 2 classes: minus (60), plus (60)"
    assert sum(line.startswith("epoch ") for line in lines) == 4
    run = folder / "penstock-runs" / "data"
    metrics = json.loads((run / "metrics.json").read_text())
    result = next(line for line in lines if line.startswith("Test accuracy"))
    assert f"{100 * metrics['accuracy']:.1f} % (24 sequences)" in result
    for name in ("model.safetensors", "metrics.json", "learning_curve.png"):
        assert any(line.strip().startswith(name) for line in lines)
        assert (run / name).is_file()
    assert any(line.strip().startswith("penstock predict penstock-runs/data") for line in lines)
    assert captured.err == ""

    # A second run takes a folder of its own; --resume finds the latest.
    assert main(["train", "data.tsv", *SMALL, "--epochs", "1", "--quiet"]) == 0
    assert (folder / "penstock-runs" / "data-2" / "metrics.json").is_file()
    capsys.readouterr()
    assert main(["train", "data.tsv", "--resume"]) == 0
    assert "Going on with penstock-runs/data-2" in capsys.readouterr().out


def test_the_default_is_digits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--limit", "200", "--epochs", "1"]) == 0
    text = capsys.readouterr().out
    assert "Training in penstock-runs/digits" in text
    assert "penstock evaluate penstock-runs/digits" in text
    assert main(["evaluate", "penstock-runs/digits", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    metrics = json.loads((folder / "penstock-runs/digits/metrics.json").read_text())
    assert figures["accuracy"] == metrics["accuracy"]
    (folder / "image.txt").write_text(",".join(["0", "16", "8", "4"] * 16) + "\n")
    assert main(["predict", "penstock-runs/digits", "image.txt"]) == 0
    plain = capsys.readouterr().out
    (folder / "image.gz").write_bytes(gzip.compress((folder / "image.txt").read_bytes()))
    assert main(["predict", "penstock-runs/digits", "image.gz"]) == 0
    assert capsys.readouterr().out == plain
    header, row = plain.splitlines()
    assert header.split("\t")[:3] == ["label", "probability", "p(0)"]
    assert len(row.split("\t")) == 12


def test_every_option_reaches_the_run(folder: Path) -> None:
    write_data(folder / "data.tsv")
    write_data(folder / "dev.tsv", 20, seed=1)
    write_data(folder / "test.tsv", 20, seed=2)
    (folder / "vectors.txt").write_text("good 1 0 0.5\nbad -1 0 0.5\n")
    given = {
        "label": "label", "text": "text", "dev": "dev.tsv", "test": "test.tsv",
        "dev_fraction": 0.2, "limit": 100, "tokenizer": "whitespace", "min_count": 1,
        "max_length": 6, "cut": "start", "embeddings": "vectors.txt", "embedding_size": 7,
        "model": "sru",
        "hidden": 9, "layers": 2, "dropout": 0.25, "pooling": "mean", "memory": 8, "lr": 0.004,
        "schedule": "constant", "weight_decay": 0.001, "clip_norm": 2.0, "epochs": 1,
        "patience": 3, "batch_size": 20, "seed": 5, "device": "cpu", "checkpoint_every": 1.5,
    }  # fmt: skip
    flags = ["--no-quotes", "--keep-case", "--freeze-embeddings", "--bidirectional", "--quiet"]
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["train", "data.tsv", *arguments, *flags, "--out", "run"]) == 0
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config == {
        **given,
        **{name: str(folder / f"{name}.tsv") for name in ("data", "dev", "test")},
        "embeddings": str(folder / "vectors.txt"),
        "quotes": False,
        "lowercase": False,
        "freeze_embeddings": True,
        "bidirectional": True,
        "folds": 0,
        "test_fraction": 0.0,
        **dict.fromkeys(("threshold", "slices", "pad", "bucket", "embedding_scale")),
    }
    model = json.loads((folder / "run" / "model.json").read_text())["model"]
    assert (model["hidden"], model["layers"], model["input_size"]) == (9, 2, 3)


def test_options_of_sliced_models_reach_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{i % 4}\t{'good' if i % 4 > 1 else 'bad'} film and more words" for i in range(120)]
    (folder / "stars.tsv").write_text("\n".join(["stars\ttext", *rows]) + "\n")
    options = (
        "--model sliced-gru --slices 2,2 --pad right --bucket 8 --embedding-scale 0.5 "
        "--threshold 2 --max-length 4 --cut end"
    )
    assert main(["train", "stars.tsv", *SMALL, *options.split(), "--out", "r"]) == 0
    text = capsys.readouterr().out
    assert "2 classes: <2 (60), >=2 (60)" in text
    assert "100 % of the texts lose their end beyond 4 tokens" in text
    config = json.loads((folder / "r" / "config.json").read_text())
    given = {"slices": "2,2", "pad": "right", "bucket": 8, "threshold": 2.0, "cut": "end"}
    given |= {"embedding_scale": 0.5}
    assert given.items() <= config.items()
    model = json.loads((folder / "r" / "model.json").read_text())["model"]
    assert (model["encoder"], model["slices"], model["bucket"]) == ("sliced-gru", [2, 2], 8)
    assert main(["predict", "r", "-t", "good film"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(">=2\t")
    assert main(["evaluate", "r", "stars.tsv"]) == 0


def test_folds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(folder / "data.tsv", 60)
    assert main(["train", "data.tsv", *SMALL, "--folds", "3", "--epochs", "1"]) == 0
    text = capsys.readouterr().out
    assert "Fold 3 of 3" in text and "on average over 3 folds" in text
    assert main(["predict", "penstock-runs/data/fold-1", "-t", "good"]) == 0


def test_evaluate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(trained / "more.tsv", 40, seed=3)
    run = str(trained / "run")
    out = trained / "figures.json"
    assert main(["evaluate", run, str(data), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["examples"] == 40 and figures["source"] == str(data)
    assert f"Accuracy {100 * figures['accuracy']:.1f} %" in text
    assert "minus" in text and "plus" in text
    assert figures["accuracy"] > 0.9
    assert main(["evaluate", run, str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == figures


def test_predict_from_everywhere(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained / "run")
    texts = ["a very good film", 'the "bad" a', ""]
    assert main(["predict", run, *(x for text in texts for x in ("-t", text))]) == 0
    expected = capsys.readouterr().out
    lines = [line.split("\t") for line in expected.splitlines()]
    assert lines[0] == ["label", "probability", "p(minus)", "p(plus)"]
    assert [line[0] for line in lines[1:3]] == ["plus", "minus"]
    for label, best, *probabilities in lines[1:]:
        values = [float(p) for p in probabilities]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert float(best) == max(values) == values[["minus", "plus"].index(label)]

    plain = trained / "texts.txt"
    plain.write_text("\n".join(texts) + "\n", encoding="utf-8")
    assert main(["predict", run, str(plain)]) == 0
    assert capsys.readouterr().out == expected
    table = trained / "texts.csv"
    table.write_text('id,comment\n1,a very good film\n2,"the ""bad"" a"\n3,\n')
    assert main(["predict", run, str(table), "--column", "comment"]) == 0
    assert capsys.readouterr().out == expected
    with gzip.open(trained / "texts.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join(texts) + "\n")
    assert main(["predict", run, str(trained / "texts.txt.gz")]) == 0
    assert capsys.readouterr().out == expected
    piped = run_command("predict", run, cwd=trained, stdin="\n".join(texts) + "\n")
    assert (piped.stdout, piped.stderr) == (expected, "")

    out = trained / "out.json"
    assert main(["predict", run, str(plain), "--format", "json", "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["label"] for record in records] == [line[0] for line in lines[1:]]
    assert records[0]["probabilities"].keys() == {"minus", "plus"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.tsv"], "no such file: none.tsv"),
        (["train", "data.tsv", "--label", "x"], "no label column 'x'; columns found: 'label', 't"),
        (["train", "notes.md"], "expected a name ending in .tsv"),
        (["train", "data.tsv", "--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["train", "data.tsv", "--model", "x"], "--model: expected one of"),
        (["train", "data.tsv", "--embeddings", "x"], "no such file: x"),
        (["train", "data.tsv", "--slices", "2"], "--slices: expected a sliced model"),
        (["train", "data.tsv", "--threshold", "2"], "--threshold: expected numbers in column"),
        (["train", "--threshold", "2"], "--threshold needs a data file"),
        (["train", "--model", "sliced-gru", "--bucket", "8"], "--bucket needs a data file"),
        (["train", "data.tsv", "--device", "gpu"], "--device: expected 'cpu'"),
        (["train", "--label", "x"], "--label needs a data file"),
        (["train", "--tokenizer", "characters"], "--tokenizer needs a data file"),
        (["train", "--min-count", "1"], "--min-count needs a data file"),
        (["train", "--embedding-size", "5"], "--embedding-size needs a data file"),
        (["train", "--keep-case"], "--keep-case needs a data file"),
        (["train", "--clip-norm", "inf"], "--clip-norm: expected a finite number, 0 or more, got"),
        (["train", "--weight-decay", "inf"], "--weight-decay: expected a finite number"),
        (["train", "--checkpoint-every", "inf"], "--checkpoint-every: expected a finite number"),
        (["train", "--limit", "60", "--epochs", "1", "--out", "notes.md/x"], "notes.md/x"),
        (["train", "--nope"], "--nope"),
        (["train", "--epochs", "many"], "--epochs"),
        (["nope"], "nope"),
        (["train", "data.tsv", "--resume"], "--resume: no run to go on with"),
        (["train", "--resume", "--out", "x"], "--resume: x holds no run"),
        (["train", "data.tsv", "--overwrite"], "--overwrite needs --out"),
        (["train", "data.tsv", "--out", "data.tsv"], "is a file, not a folder"),
        (["evaluate", "x"], "x holds no trained model"),
        (["predict", "x", "-t", "y"], "x holds no trained model"),
        (["predict", "x", "f", "-t", "y"], "give FILE or --text, not both"),
        (["predict", "x", "-f", "xml", "-t", "y"], "--format: expected tsv or json, got 'xml'"),
    ],
)
def test_errors_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_data(folder / "data.tsv", 30)
    (folder / "notes.md").write_text("x")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("penstock: error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    captured = capsys.readouterr()
    assert "predict" in captured.out and captured.err == ""


def test_input_that_is_no_text_is_one_line(trained: Path) -> None:
    result = subprocess.run(
        command("predict", "run"),
        cwd=trained,
        input=b"good\xff\n",
        capture_output=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert result.returncode == 2 and result.stdout == b""
    assert result.stderr.startswith(b"penstock: error: standard input is not UTF-8 text")
    assert result.stderr.count(b"\n") == 1


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("penstock: error: ") and text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("model.json", None, []),
        ("model.json", "labels", 3),
        ("model.json", "input", {}),
        ("model.json", "input", {"kind": "text"}),
        ("model.json", "model", {"hidden": "x"}),
        ("model.json", "model", {}),
        ("config.json", None, [1]),
        ("config.json", "hidden", "x"),
        ("config.json", "lowercase", 1),
        ("config.json", "epochs", True),
        ("config.json", "nope", 1),
    ],
)
def test_damaged_json_is_one_line(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    key: str | None,
    value: object,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    values = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(value if key is None else {**values, key: value}))
    one_line(capsys, ["evaluate", str(run)])
    if name == "config.json":
        one_line(capsys, ["train", "--resume", "--out", str(run)])


def test_an_unwritable_output_is_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(trained / "data.tsv" / "x.tsv")
    arguments = ["predict", str(trained / "run"), "-t", "good", "--out", out]
    assert "data.tsv" in one_line(capsys, arguments)


def test_the_run_of_the_same_data_is_resumed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        write_data(folder / name / "data.tsv", 40, seed=ord(name))
    options = [*SMALL, "--epochs", "1", "--quiet"]
    for name in ("a", "a", "b"):
        assert main(["train", f"{name}/data.tsv", *options]) == 0
    root = folder / "penstock-runs"
    shutil.rmtree(root / "data")
    capsys.readouterr()
    assert main(["train", "a/data.tsv", "--resume"]) == 0
    assert "Going on with penstock-runs/data-2" in capsys.readouterr().out
    assert main(["train", "b/data.tsv", *options]) == 0
    assert sorted(path.name for path in root.iterdir()) == ["data-2", "data-3", "data-4"]
    capsys.readouterr()
    assert main(["train", "b/data.tsv", "--resume"]) == 0
    assert "Going on with penstock-runs/data-4" in capsys.readouterr().out
    shutil.rmtree(root / "data-2")
    assert "no run to go on with" in one_line(capsys, ["train", "a/data.tsv", "--resume"])


def test_data_that_are_gone_are_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(folder / "data.tsv", 40)
    assert main(["train", "data.tsv", *SMALL, "--epochs", "1", "--out", "run", "--quiet"]) == 0
    run = str(folder / "run")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert main(["evaluate", run]) == 0
    capsys.readouterr()
    data.rename(folder / "moved.tsv")
    assert f"penstock evaluate {run} FILE" in one_line(capsys, ["evaluate", run])
    assert "give FILE with --resume" in one_line(capsys, ["train", "--resume", "--out", run])
    assert main(["train", str(folder / "moved.tsv"), "--resume", "--out", run]) == 0


def test_a_run_is_not_overwritten_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(folder / "data.tsv", 40)
    arguments = ["train", "data.tsv", *SMALL, "--epochs", "1", "--out", "run", "--quiet"]
    assert main(arguments) == 0
    (folder / "run" / "notes.txt").write_text("mine")
    before = (folder / "run" / "metrics.json").read_bytes()
    assert main(arguments) == 2
    assert "run holds a run already" in capsys.readouterr().err
    # A mistake in the new run's options must not cost the old run.
    assert main([*arguments, "--overwrite", "--label", "x"]) == 2
    assert (folder / "run" / "metrics.json").read_bytes() == before
    assert main([*arguments, "--overwrite", "--hidden", "5"]) == 0
    assert json.loads((folder / "run" / "metrics.json").read_text())["config"]["hidden"] == 5
    assert (folder / "run" / "notes.txt").read_text() == "mine"
    assert main(["train", "--resume", "--out", "run", "--hidden", "6"]) == 2
    assert "--hidden: the run in run was started with 5, got 6" in capsys.readouterr().err


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_kill_and_resume_gives_the_same_bits(folder: Path, number: signal.Signals) -> None:
    from safetensors.numpy import load_file

    write_data(folder / "data.tsv", 600)
    options = [*SMALL, "--epochs", "12", "--batch-size", "8", "--dropout", "0.2"]
    assert main(["train", "data.tsv", *options, "--out", "whole", "--quiet"]) == 0
    process = subprocess.Popen(
        command("train", "data.tsv", *options, "--out", "run", "--checkpoint-every", "0"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(folder / "run" / "checkpoint.safetensors", process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert not (folder / "run" / "metrics.json").exists(), "the run ended before the signal"
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "penstock train --resume --out run" in output
    else:
        assert process.returncode == -number
    assert errors == ""
    result = run_command("train", "--resume", "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Going on with run" in result.stdout
    for name in ("checkpoint.safetensors", "model.safetensors"):
        whole, resumed = (load_file(folder / run / name) for run in ("whole", "run"))
        assert whole.keys() == resumed.keys()
        for key, value in whole.items():
            assert value.tobytes() == resumed[key].tobytes(), key


def test_output_to_a_closed_pipe_is_no_error(trained: Path) -> None:
    (trained / "many.txt").write_text("good\n" * 20000)
    shell = " ".join(command("predict", "run", "many.txt")) + " | head -1"
    shell += "; echo ${PIPESTATUS[0]}"
    result = subprocess.run(
        ["bash", "-c", shell],
        cwd=trained,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.startswith("label\t")
    assert result.stdout.splitlines()[1:] == ["0"]
    assert result.stderr == ""
