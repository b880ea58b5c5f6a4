"""Which device, driver and software there is; what is missing, in words."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from bench.gpu_check.stages import Context
from bench.gpu_check.worker import Report

PACKAGES = (
    "penstock", "numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "jax", "sru",
    "flashrnn", "ml_dtypes", "nvidia-cublas", "nvidia-cudnn-cu13", "pybind11", "pytest",
    "pytest-xdist",
)  # fmt: skip

#: What is left out without a module.
ABSENT = {
    "cupy": "its arrays are left out, and the tests on the device, which use them",
    "torch": "its tensors are left out, and its layers as peers",
    "sru": "left out as a peer",
    "flashrnn": "left out as a peer",
    "ml_dtypes": "bfloat16 is left out with NumPy and CuPy",
    "xdist": "the tests run one at a time (pytest-xdist)",
}

# CUdevice_attribute
ATTRIBUTES = {
    "multiprocessors": 16,
    "l2_bytes": 38,
    "compute_major": 75,
    "compute_minor": 76,
    "shared_bytes_per_block": 97,
}

NVIDIA_SMI = (
    "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem",
    "power.draw", "power.limit", "temperature.gpu", "persistence_mode", "mig.mode.current",
)  # fmt: skip


def output_of(*command: str, seconds: float = 20) -> str | None:
    """What a program prints, or None if it is not there or fails."""
    path = shutil.which(command[0]) or shutil.which(command[0], path=sysconfig.get_path("scripts"))
    if path is None:
        return None
    try:
        run = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, timeout=seconds, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout


def driver_device() -> dict[str, Any] | str:
    """The first visible device as the driver describes it, or why there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 is not on this machine"
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = cuda.cuInit(0)
    if status != 0:
        return f"the NVIDIA driver does not start (cuInit returned {status})"
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return "the NVIDIA driver sees no device"
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(128)
    cuda.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    found: dict[str, Any] = {
        "name": name.value.decode(),
        "devices": count.value,
        "memory_bytes": memory.value,
        "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }
    value = ctypes.c_int()
    for key, number in ATTRIBUTES.items():
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        found[key] = value.value
    return found


def nvidia_smi() -> dict[str, str]:
    """What nvidia-smi says of the first visible device; empty where it is not there."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    fields = ",".join(NVIDIA_SMI)
    text = output_of(
        "nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={first or 0}"
    )
    if text is None or not text.strip():
        return {}
    return dict(zip(NVIDIA_SMI, map(str.strip, text.splitlines()[0].split(",")), strict=False))


def commit(root: Path) -> dict[str, Any]:
    """The commit that is checked, and whether the tree differs from it."""
    revision = output_of("git", "-C", str(root), "rev-parse", "HEAD")
    changes = output_of("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": revision.strip() if revision else None,
        "changed": bool(changes.strip()) if changes is not None else None,
    }


def nvcc_version() -> str | None:
    found = output_of("nvcc", "--version")
    for variable in ("PENSTOCK_CUDA_ROOT", "CUDA_HOME", "CUDA_PATH"):
        if found is None and os.environ.get(variable):
            found = output_of(str(Path(os.environ[variable], "bin", "nvcc")), "--version")
    if found is None:
        found = output_of("/usr/local/cuda/bin/nvcc", "--version")
    match = re.search(r"release (\S+),", found or "")
    return match[1] if match else None


def torch_versions() -> dict[str, Any]:
    """CUDA and cuDNN that PyTorch was built with."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {"cuda": torch.version.cuda, "cudnn": cudnn}


def host() -> dict[str, Any]:
    """Processor, cores, system, and versions of the packages that are installed.

    As penstock.bench.machine has it, but before there is a penstock.
    """
    model = platform.processor()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.findall(r"model name\s*: (.*)", text)[0]
    except (OSError, IndexError):
        pass
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "versions": versions,
    }


def describe_device(context: Context, report: Report) -> None:
    """Stage: the machine, the device, the software, and what is missing."""
    machine = host()
    report.put("machine", machine)
    report.put("source", commit(context.root))
    report.put("nvcc", nvcc_version())
    for tool in ("cmake", "compute-sanitizer", "c++"):
        text = output_of(tool, "--version")
        match = re.search(r"\d+\.\d+[.\d]*", text or "")
        report.put(tool, match[0] if match else None)
    if context.emulated:
        report.put("device", {"name": "emulated CUDA over the CPU"})
        report.line(f"emulated CUDA on {machine['processor']}, {machine['cores']} cores")
    else:
        found = driver_device()
        if isinstance(found, str):
            report.fail(f"{found}; --emulated runs the check without a device")
            return
        smi = nvidia_smi()
        report.put("device", found | {"nvidia_smi": smi})
        report.line(
            f"{found['name']}, compute capability {found['compute_major']}."
            f"{found['compute_minor']}, {found['memory_bytes'] / 2**30:.0f} GiB, "
            f"driver {smi.get('driver_version', 'unknown')} (CUDA {found['driver_cuda']})"
        )
        if not smi:
            report.line("nvidia-smi: not there, so driver version and clocks are unknown")
    try:
        report.put("torch", torch_versions())
    except Exception as error:
        report.line(f"torch: does not import ({error})")
    for module, words in ABSENT.items():
        if importlib.util.find_spec(module) is None:
            report.line(f"{module}: not installed; {words}")
    report.line(f"Python {machine['python']}, nvcc {report.data['nvcc'] or 'not there'}")
