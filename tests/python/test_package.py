"""The package as a whole: versions, the installed C++ side, examples, README, project files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import penstock
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


COMPILERS = {"cpp": ("c++", "g++", "clang++"), "c": ("cc", "gcc", "clang")}


def find_tool(name: str) -> str | None:
    """A program on PATH, or beside the Python that runs the tests."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def installed(function_name: str) -> Path:
    """A folder of the installed package, or skip."""
    try:
        return Path(getattr(penstock, function_name)())
    except FileNotFoundError as error:
        pytest.skip(str(error))


def project_files() -> list[Path]:
    """Every text file that is, or may become, part of the project."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a clone")
    command = [git, "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip(f"git: {listed.stderr.decode()}")
    paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in {".png", ".npz"}]


def commands_of_readme() -> list[str]:
    """The code block of each of the README's two commands."""
    section = README.split("\n## Two commands\n")[1].split("\n## ")[0]
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)]


# ---- versions --------------------------------------------------------------------------------


def test_one_version_number() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    project = re.search(r"^project\(penstock VERSION (\S+)", text, re.M)
    assert project
    assert penstock.__version__ == penstock.config()["version"] == project[1]
    assert f"## {project[1]}" in (ROOT / "CHANGELOG.md").read_text()
    try:
        version = metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return  # out of a build tree
    assert version == project[1]


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("cuda13", "nvidia-cublas"), ("cuda13", "cupy-cuda13x"), ("cuda12", "nvidia-cublas-cu12"),
        ("torch", "torch"), ("jax", "jax"),
    ],
)  # fmt: skip
def test_extras_bring(extra: str, package: str) -> None:
    """What an extra is for is among its requirements."""
    text = (ROOT / "pyproject.toml").read_text()
    line = re.search(rf"^{extra} = \[(.*)\]$", text, re.M)
    assert line
    names = [re.split(r"[<>=]", requirement)[0] for requirement in re.findall(r'"(.*?)"', line[1])]
    assert package in names


# ---- the C++ side of an installed package ----------------------------------------------------


def test_installed_files() -> None:
    include = installed("get_include")
    source = ROOT / "include/penstock"
    headers = {path.name: path.read_text() for path in (include / "penstock").iterdir()}
    assert headers == {path.name: path.read_text() for path in source.iterdir()}
    libraries = [path.name for path in (include.parent / "lib").glob("lib*")]
    assert "libpenstock.so" in libraries or "libpenstock.dylib" in libraries
    # A wheel holds no symbolic links, so a versioned name would be a second copy.
    assert [name for name in libraries if re.search(r"\.so\.\d", name)] == []


def test_public_headers_include_no_cuda() -> None:
    headers = sorted((ROOT / "include").rglob("*.h"))
    assert headers
    for header in headers:
        for line in header.read_text().splitlines():
            if line.lstrip().startswith("#"):
                assert not re.search(r"cuda|cublas|hip/|nv_", line, re.I), f"{header.name}: {line}"
                plain = not line.startswith("#if") or header.name == "export.h"
                plain = plain or (header.name == "c.h" and line == "#ifdef __cplusplus")
                assert plain, f"{header.name}: a public header that depends on the build: {line}"


@pytest.mark.parametrize(("language", "variable"), [("cpp", "CXX"), ("c", "C")])
def test_examples_build_and_train(language: str, variable: str, tmp_path: Path) -> None:
    """find_package(penstock) as C++ and C users have it: this package, a compiler, and CMake."""
    folder = installed("get_cmake_dir")
    cmake = find_tool("cmake")
    compiler = os.environ.get("CXX" if language == "cpp" else "CC") or next(
        filter(None, map(find_tool, COMPILERS[language])), None
    )
    if cmake is None or compiler is None:
        pytest.skip(f"needs CMake and a compiler of {variable}")
    configure = [cmake, "-S", str(ROOT / "examples" / language), "-B", str(tmp_path)]
    configure += [f"-Dpenstock_DIR={folder}", f"-DCMAKE_{variable}_COMPILER={compiler.split()[-1]}"]
    configure += [f"-DCMAKE_{variable}_FLAGS=-Wall -Wextra -Wconversion -Werror"]
    ninja = find_tool("ninja")
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    elif find_tool("make") is None:
        pytest.skip("needs ninja or make")

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(*configure)
    run(cmake, "--build", str(tmp_path))
    output = run(str(tmp_path / "train_sru"))
    assert f"penstock {penstock.__version__} on" in output
    assert "sru: x: expected" in output
    assert re.search(r"loss [0-9.]+, at first [0-9.]+", run(str(tmp_path / "train_sliced")))


def test_pkg_config_file() -> None:
    """Says where the headers and the library are, wherever the package is."""
    libraries = installed("get_cmake_dir").parents[1]
    text = (libraries / "pkgconfig/penstock.pc").read_text()
    assert f"Version: {penstock.__version__}\n" in text
    assert str(libraries) not in text
    tool = find_tool("pkg-config")
    if tool is None:
        pytest.skip("needs pkg-config")
    done = subprocess.run(
        [tool, "--cflags", "--libs", "penstock"],
        env={**os.environ, "PKG_CONFIG_PATH": str(libraries / "pkgconfig")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    flags = done.stdout.split()
    include = next(Path(flag[2:]) for flag in flags if flag.startswith("-I"))
    folder = next(Path(flag[2:]) for flag in flags if flag.startswith("-L"))
    assert (include / "penstock/c.h").is_file()
    assert folder.resolve() == libraries.resolve()
    assert flags[-1] == "-lpenstock"


# ---- examples and README ---------------------------------------------------------------------


def test_numpy_example_learns() -> None:
    command = [sys.executable, str(ROOT / "examples/train_numpy.py")]
    command += ["--steps", "20", "--updates", "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout)]
    # 0.167 is what a constant costs.
    assert losses[-1] < 0.08, done.stdout


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_readme_has_python_code() -> None:
    assert len(python_blocks()) >= 3


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_readme_python_code_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = python_blocks()[number]
    for package in ("torch", "jax", "cupy"):
        if f"import {package}" in code:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"README.md, block {number}", "exec"), {"__name__": "readme"})


def test_readme_commands() -> None:
    train, test = commands_of_readme()
    for command in (train, test):
        # Each alone, in a fresh clone: one line, an environment of its own, nothing assumed.
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv")
        assert len(command) < 100
    assert train.endswith("penstock train")
    assert test.endswith("pytest")


def test_ci_runs_the_readme_command() -> None:
    script = ROOT / ".ci/run"
    if not script.exists():
        pytest.skip("a source distribution has no .ci")
    lines = script.read_text().splitlines()
    assert commands_of_readme()[1] in [line.strip() for line in lines]


def test_readme_names_every_setting() -> None:
    """Whatever a person can set is in the README's table."""
    settings = set()
    for path in [*(ROOT / "src").rglob("*.[ch]*"), *(ROOT / "python/penstock").rglob("*.py")]:
        text = path.read_text()
        settings |= set(re.findall(r"(?:getenv\(|setting\(|environ.{1,6})\"(PENSTOCK_\w+)\"", text))
    for path in [ROOT / "CMakeLists.txt", *(ROOT / "cmake").glob("*.cmake")]:
        text = path.read_text()
        settings |= set(re.findall(r"^option\((PENSTOCK_\w+)", text, re.M))
        settings |= set(re.findall(r"^set\((PENSTOCK_\w+)[^)]*?\bCACHE (?!INTERNAL)", text, re.M))
    assert "PENSTOCK_CUDA" in settings and "PENSTOCK_NUM_THREADS" in settings
    missing = sorted(name for name in settings if f"`{name}`" not in README)
    assert not missing


# ---- project files ---------------------------------------------------------------------------


def test_no_path_of_one_machine() -> None:
    """No file names a folder that only its author has."""
    folders = ["home", "root", "work", "workspace", "mnt", "tmp", "Users"]
    pattern = re.compile(rf"(?<![\w.$}})*-])/(?:{'|'.join(folders)})/\w")
    wrong = []
    for path in project_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert wrong == []


def test_text_files_are_tidy() -> None:
    wrong = []
    for path in project_files():
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            wrong.append(f"{path.relative_to(ROOT)}: no newline at the end")
        for number, line in enumerate(text.splitlines(), 1):
            if line != line.rstrip() or "\r" in line:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: blanks at the end")
    assert wrong == []
