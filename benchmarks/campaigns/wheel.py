"""Builds the wheel, installs it in fresh environments, and generates there: with the compiled kernels, and with none.

    python -m benchmarks.campaigns wheel [--work FOLDER] [--torch 'torch==2.13.0'] [--out benchmarks/results]

The promises: a wheel that was built where there is a compiler holds the kernels of every level, and they run where none is on the path; it
names no Python, so one serves all; a wheel that was built without a compiler installs as well, `tripod doctor` says what is missing and
what that costs, and on torch it continues a prompt with the same tokens.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.campaigns.promises import keep_and_tell
from benchmarks.setting import setting
from tripod.models.initialize import random_language_model
from tripod.models.llama import LlamaConfig
from tripod.models.save import save_checkpoint
from tripod.ops.kernels.cpu import build
from tripod.ops.rope import RopeConfig
from tripod.text.byte_level import write_byte_tokenizer

ROOT = Path(__file__).parents[2]
MODEL = LlamaConfig(
    vocab_size=259, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_positions=160,
    rope=RopeConfig(rotary_dim=16),
)  # fmt: skip


def said(*command: str | Path, environment: Mapping[str, str]) -> str:
    """What a command printed on both streams; it must end with 0."""
    done = subprocess.run([*map(str, command)], cwd="/", env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def without_compiler(folder: Path) -> dict[str, str]:
    """An environment in which no compiler is found, and no Tripod but an installed one."""
    names = ("PYTHONPATH", "CXX", "TRIPOD_KERNELS", "VIRTUAL_ENV")
    return {**{name: value for name, value in os.environ.items() if name not in names}, "PATH": str(folder)}


def build_wheel(to: Path, environment: Mapping[str, str]) -> Path:
    """From a copy of the checkout in which nothing is compiled yet."""
    source = to.with_name(f"{to.name}-source")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("*.so", ".*", "__pycache__", "shared", "runs", "site", "build", "dist"))
    said(sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--quiet", "--wheel-dir", to, environment=environment)
    [wheel] = to.glob("*.whl")
    return wheel


def install(wheel: Path, to: Path, torch: str) -> Path:
    """A fresh environment with the wheel, the extra `engine` and the torch that was named; returns its Python."""
    environment = without_compiler(to)
    said(sys.executable, "-m", "venv", to, environment=environment)
    python = to / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    said(*pip, torch, environment=environment)
    said(*pip, f"tripod[engine] @ {wheel.as_uri()}", environment=environment)
    return python


def main(arguments: list[str]) -> int:
    """0 if all that was promised holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns wheel", description=__doc__)
    parser.add_argument("--work", type=Path, help="a temporary folder if absent")
    parser.add_argument("--torch", default="torch==2.13.0", help="the requirement that is installed first")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    began_s, promises, shown = time.monotonic(), {}, {}
    with tempfile.TemporaryDirectory(prefix="tripod-wheel-") as name:
        work = options.work or Path(name)
        (work / "model").mkdir(parents=True)
        model = random_language_model(MODEL, 3)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)  # so that the likeliest token is not a matter of the last bits
        save_checkpoint(model, work / "model")
        write_byte_tokenizer(work / "model")
        answers = {}
        for kind, environment in (("compiled", dict(os.environ)), ("plain", without_compiler(work / "nothing"))):
            wheel = build_wheel(work / kind, environment)
            held = {Path(entry).name for entry in zipfile.ZipFile(wheel).namelist()}
            levels = [level for level in build.buildable_levels() if build.object_path(level).name in held]
            python = install(wheel, work / f"{kind}-env", options.torch)
            inside = without_compiler(python.parent)
            doctor = said(python, "-m", "tripod", "doctor", environment=inside)
            [kernels] = [line.strip() for line in doctor.splitlines() if "CPU kernels" in line]
            generate = (python, "-m", "tripod", "generate", work / "model", "one wheel", "--max-tokens", "24")
            answers[kind] = said(*generate, environment=inside)
            shown[kind] = {"wheel": wheel.name, "bytes": wheel.stat().st_size, "levels": levels, "doctor": kernels}
            print(kind, *shown[kind].values(), sep="\n    ", flush=True)
        best = build.levels_here()[0]
        promises = {
            "a compiled wheel holds every level": shown["compiled"]["levels"] == [*build.buildable_levels()],
            "it names no Python": "-py3-none-" in str(shown["compiled"]["wheel"]),
            "its kernels run where no compiler is": str(shown["compiled"]["doctor"]).endswith(f"for {best}"),
            "without a compiler a wheel for any machine is built": str(shown["plain"]["wheel"]).endswith("-py3-none-any.whl"),
            "and doctor says what is missing and what it costs": all(
                part in str(shown["plain"]["doctor"]) for part in ("none, so decoding takes the torch path", "no C++ compiler")
            ),
            "both continue a prompt alike": answers["compiled"].partition("tokens in")[0] == answers["plain"].partition("tokens in")[0],
        }
    raw = {
        "setting": setting("benchmarks.campaigns", ("torch",)),
        "wall_s": time.monotonic() - began_s,
        "wheels": shown,
    }
    return keep_and_tell(options.out / "wheel.json", raw, promises)
