"""What the library says about itself and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import penstock
import pytest

KEYS = {
    "version", "compiler", "cpu_isa", "cpu_warning", "blas", "blas_core", "blas_warning",
    "num_threads", "cuda_available", "cuda_status", "python",
}  # fmt: skip


def in_child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where the library reads its environment anew."""
    package = str(Path(penstock.__file__).resolve().parents[1])
    paths = os.pathsep.join([package, *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_config() -> None:
    config = penstock.config()
    assert config.keys() >= KEYS
    assert config["version"] == penstock.__version__
    assert config["python"] == platform.python_version()
    assert config["num_threads"] == penstock.get_num_threads() >= 1
    assert isinstance(config["cuda_available"], bool)
    for name in KEYS - {"num_threads", "cuda_available", "cpu_warning", "blas_warning"}:
        assert isinstance(config[name], str)
        assert config[name].strip(), name


def test_config_is_a_copy() -> None:
    penstock.config()["version"] = "changed"
    assert penstock.config()["version"] == penstock.__version__


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    penstock.show_config()
    printed = capsys.readouterr().out
    config = penstock.config()
    for name in ("version", "cpu_isa", "blas_core", "cuda_status"):
        assert config[name] in printed
    assert f"{config['num_threads']} threads" in printed
    assert ("on: " if config["cuda_available"] else "off: ") in printed
    assert ("warning" in printed) == bool(config["blas_warning"] or config["cpu_warning"])


def test_version() -> None:
    source = Path(__file__).resolve().parents[2] / "CMakeLists.txt"
    parts = penstock.__version__.split(".")
    assert len(parts) == 3
    assert all(p.isdigit() for p in parts)
    assert f"project(penstock VERSION {penstock.__version__}" in source.read_text("utf-8")


def test_public_names() -> None:
    for name in penstock.__all__:
        assert getattr(penstock, name) is not None


@pytest.mark.parametrize("variable", ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"])
def test_warns_of_what_slows_the_blas(variable: str) -> None:
    if "OpenBLAS" not in penstock.config()["blas"]:
        pytest.skip("this build has another BLAS")
    values = {"OPENBLAS_CORETYPE": "", "OPENBLAS_L2_SIZE": ""}
    done = in_child("import penstock; penstock.show_config()", **values)
    assert "warning" not in done.stdout, done.stderr
    values[variable] = "Haswell" if variable == "OPENBLAS_CORETYPE" else "524288"
    done = in_child("import penstock; penstock.show_config()", **values)
    assert "warning" in done.stdout
    assert variable in done.stdout


CUDA = (
    "import penstock\n"
    "config = penstock.config()\n"
    "print(config['cuda_available'])\n"
    "print(config['cuda_status'])\n"
)


def test_cuda_is_off_in_words_without_a_plugin(tmp_path: Path) -> None:
    missing = tmp_path / "libpenstock_cuda99.so"
    done = in_child(CUDA, PENSTOCK_CUDA_PLUGIN=str(missing))
    assert done.returncode == 0, done.stderr
    available, status = done.stdout.splitlines()
    assert available == "False"
    assert str(missing) in status


def test_a_file_that_is_no_plugin(tmp_path: Path) -> None:
    broken = tmp_path / "libpenstock_cuda99.so"
    broken.write_bytes(b"no ELF")
    done = in_child(CUDA, PENSTOCK_CUDA_PLUGIN=str(broken))
    assert done.returncode == 0, done.stderr
    assert "does not load" in done.stdout


CALL = (
    "import numpy as np, penstock\n"
    "x = np.zeros((2, 1, 3), np.float32)\n"
    "w, b = np.zeros((1, 9, 3), np.float32), np.zeros((1, 2, 3), np.float32)\n"
    "try:\n"
    "    penstock.sru(x, w, None, b)\n"
    "except RuntimeError as e:\n"
    "    print(e)\n"
)


def test_a_host_plugin_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "nothing.so")
    done = in_child(CALL, PENSTOCK_HOST_PLUGIN=path)
    assert done.returncode == 0, done.stderr
    assert "PENSTOCK_HOST_PLUGIN" in done.stdout
    assert path in done.stdout


def test_import_needs_no_framework() -> None:
    frameworks = "{'torch', 'jax', 'cupy', 'tensorflow', 'pandas', 'matplotlib', 'sklearn'}"
    done = in_child(f"import sys, penstock; print(sorted({frameworks} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("value", ["base", "avx2", "avx512", "nonsense", ""])
def test_instruction_set_from_the_environment(value: str) -> None:
    done = in_child("import penstock; print(penstock.config()['cpu_isa'])", PENSTOCK_ISA=value)
    order: Any = ["base", "avx2", "avx512", "avx512+amx"]
    found = done.stdout.strip()
    if found == "neon":
        return
    assert found in order
    if value in order:
        assert order.index(found) <= order.index(value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PENSTOCK_ISA", "sse9"), ("PENSTOCK_NUM_THREADS", "2x"), ("PENSTOCK_NUM_THREADS", "0")],
)
def test_warns_of_settings_without_meaning(variable: str, value: str) -> None:
    child = in_child("import penstock; penstock.show_config()", **{variable: value})
    assert child.returncode == 0, child.stderr
    assert f"{variable}={value} is ignored: expected" in child.stdout
