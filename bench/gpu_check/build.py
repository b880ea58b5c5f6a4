"""Builds the library, the bindings, the C++ tests and the plugin for the device that is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from bench.gpu_check.stages import Context
from bench.gpu_check.worker import Report

#: Exit status of a program that was stopped; no program ends with it by itself.
OUT_OF_TIME = -1000
NO_GOOGLETEST = "PENSTOCK_TESTS needs GoogleTest"


def tool(name: str) -> str | None:
    """A program on PATH, or beside the Python that runs this."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def run_to_log(command: list[str], log: Path, seconds: float, **options: Any) -> tuple[int, str]:
    """Run a program; what it prints goes to a file, and is returned behind its exit status.

    A program that takes longer than it may ends with the status OUT_OF_TIME.
    """
    try:
        run = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds,
            check=False, **options,
        )  # fmt: skip
        status, output = run.returncode, run.stdout
    except subprocess.TimeoutExpired as error:
        status, output = OUT_OF_TIME, error.stdout or b""
    text = output.decode(errors="replace")
    log.write_text(text)
    return status, text


def options_of(context: Context) -> dict[str, str]:
    """CMake's options. The plugin is built for the device's own architecture alone."""
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "PENSTOCK_PYTHON": "ON",
        "PENSTOCK_TESTS": "ON",
        "PENSTOCK_CUDA": "OFF" if context.emulated else "ON",
        "PENSTOCK_EMULATED_CUDA": "ON" if context.emulated else "OFF",
        "Python_EXECUTABLE": sys.executable,
    }
    device = context.earlier.get("device", {}).get("device", {})
    if "compute_major" in device:
        architecture = f"{device['compute_major']}{device['compute_minor']}"
        options["PENSTOCK_CUDA_ARCHITECTURES"] = f"{architecture}-real"
    return options


def kernels_of(report: str) -> list[dict[str, Any]]:
    """Rows of resource_usage.txt."""
    pattern = re.compile(
        r"^(?P<architecture>\S+)  registers (?P<registers>\d+)  shared (?P<shared>\d+)"
        r"  stack (?P<stack>\d+)  spills (?P<spills>\S+)  (?P<kernel>.*)$"
    )
    rows = []
    for line in report.splitlines():
        match = pattern.match(line)
        if match:
            row: dict[str, Any] = match.groupdict()
            rows.append(row | {k: int(row[k]) for k in ("registers", "shared", "stack")})
    return rows


def make_site(context: Context) -> None:
    """A folder with the package's Python files of the source tree and the module of the build."""
    package = context.site / "penstock"
    shutil.rmtree(context.site, ignore_errors=True)
    shutil.copytree(
        context.root / "python" / "penstock",
        package,
        ignore=shutil.ignore_patterns("_core*.so", "__pycache__"),
    )
    # A link, so that the module is loaded beside libpenstock.so and finds the plugin there.
    for module in (context.build_dir / "python").glob("_core*.so"):
        (package / module.name).symlink_to(module)


def build(context: Context, report: Report) -> None:
    """Stage: configure, compile, and import what came out."""
    cmake = tool("cmake")
    if cmake is None:
        report.fail("CMake is not there")
        return
    context.logs.mkdir(parents=True, exist_ok=True)
    options = options_of(context)
    configure = [cmake, "-S", str(context.root), "-B", str(context.build_dir)]
    ninja = tool("ninja")
    if ninja is not None and not (context.build_dir / "Makefile").exists():
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]

    def run_configure() -> tuple[int, str]:
        given = [f"-D{name}={value}" for name, value in options.items()]
        return run_to_log([*configure, *given], context.logs / "configure.log", context.time_left)

    status, text = run_configure()
    if status != 0 and NO_GOOGLETEST in text:
        report.line("GoogleTest is not there: the C++ tests are left out")
        options["PENSTOCK_TESTS"] = "OFF"
        status, text = run_configure()
    report.put("options", {k: v for k, v in options.items() if k != "Python_EXECUTABLE"})
    report.put("cpp_tests", options["PENSTOCK_TESTS"] == "ON")
    if status != 0:
        report.fail("CMake does not configure: " + "\n".join(text.splitlines()[-20:]))
        return
    status, text = run_to_log(
        [cmake, "--build", str(context.build_dir), "-j", str(context.jobs)],
        context.logs / "compile.log",
        context.time_left,
    )
    if status != 0:
        errors = dict.fromkeys(line for line in text.splitlines() if re.search(r"\berror\b", line))
        report.fail("the build fails: " + "\n".join([*errors][:10] or text.splitlines()[-20:]))
        return

    resources = context.build_dir / "resource_usage.txt"
    if resources.exists() and not context.emulated:
        kernels = kernels_of(resources.read_text())
        report.put("kernels", kernels)
        spilling = [k["kernel"] for k in kernels if k["spills"] != "0/0"]
        report.line(f"{len(kernels)} kernels, {len(spilling)} of them spill registers")
    make_site(context)
    check_import(context, report)


def check_import(context: Context, report: Report) -> None:
    """Import the package as later stages will, in a process of its own."""
    script = "import json, penstock; print(json.dumps([penstock.__file__, penstock.config()]))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, env=dict(os.environ), timeout=60, check=False,
    )  # fmt: skip
    if run.returncode != 0:
        report.fail(f"the package does not import: {run.stderr.strip()[-500:]}")
        return
    path, config = json.loads(run.stdout.splitlines()[-1])
    report.put("config", config)
    if context.site not in Path(path).parents:
        report.fail(f"another penstock is imported than the one that was built: {path}")
    elif not context.emulated and not config["cuda_available"]:
        report.fail(f"CUDA is off in the build: {config['cuda_status']}")
    else:
        report.line(
            f"penstock {config['version']}, "
            + ("emulated CUDA" if context.emulated else config["cuda_status"])
        )
