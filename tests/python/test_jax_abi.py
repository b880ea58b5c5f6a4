"""The library's declarations of XLA's foreign function interface against jaxlib's own header."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

jax = pytest.importorskip("jax")

ROOT = Path(__file__).parents[2]


def test_layouts_and_numbers_are_those_of_jaxlibs_header(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    include = Path(jax.ffi.include_dir())
    if not (include / "xla/ffi/api/c_api.h").exists():
        pytest.skip("this jaxlib brings no header")
    program = tmp_path / "abi"
    subprocess.run(
        [
            compiler, "-std=c++17", "-Wall", "-Wextra", "-Wno-invalid-offsetof", "-Werror",
            "-I", ROOT / "src", "-isystem", include,
            ROOT / "tests/cpp/test_xla_ffi_abi.cc", "-o", program,
        ],
        check=True,
    )  # fmt: skip
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    compared = int(result.stdout.splitlines()[-1].split()[2])
    assert compared > 150
