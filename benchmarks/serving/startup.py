"""From the start of a process to its first token: ours, with and without packed weights kept from before, beside transformers.

    python -m benchmarks.serving.startup [--shape pythia-160m] [--format bfloat16] [--rounds 3] [--python openvino=ENV/bin/python]

Every start is a process of its own, and the contestants take turns. A process says when its imports, its model and its first token were
there, in seconds since it was started. Files are in the page cache after the first round, for everybody. Raw results go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTS = {
    "tripod": ("torch", "tripod.engine.engine", "tripod.sampling"),
    "transformers": ("torch", "transformers.models.auto.modeling_auto"),
    "openvino": ("openvino", "openvino_genai"),
    "vllm": ("torch", "vllm"),
}
PROMPT = list(range(100, 132))


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:])
    from rich.console import Console
    from rich.table import Table

    from benchmarks.serving.shapes import SHAPES, model_folder
    from benchmarks.setting import keep, setting

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="pythia-160m")
    parser.add_argument("--format", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--python", nargs="*", default=[], metavar="ENGINE=PATH", help="other engines, each with its interpreter")
    options = parser.parse_args()
    pythons = {"tripod": sys.executable, "transformers": sys.executable, **dict(entry.split("=", 1) for entry in options.python)}
    folder = str(model_folder(options.shape))
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tripod-startup-") as kept:
        for number in range(options.rounds):
            figures: dict[str, Any] = {}
            for engine, python in pythons.items():
                arguments = (python, engine, options.format, folder, options.threads)
                if engine == "tripod":
                    figures["tripod, packing"] = start(*arguments, {"TRIPOD_PACKED_CACHE": "off"})
                    if number == 0:
                        start(*arguments, {"TRIPOD_PACKED_CACHE": kept})  # leaves the packed weights
                    figures["tripod, packed weights kept"] = start(*arguments, {"TRIPOD_PACKED_CACHE": kept})
                else:
                    figures[engine] = start(*arguments, {})
            rounds.append(figures)
    table = Table(
        "process", "imports", "model ready", "first token", "after imports", "processor time", title=f"{options.shape}, seconds: median"
    )
    for name in rounds[0]:
        runs = [figures[name] for figures in rounds]
        if "error" in runs[0]:
            table.add_row(name, f"not measured: {runs[0]['error']}")
            continue
        row = [statistics.median(run[mark] for run in runs) for mark in ("imports_s", "model_s", "token_s", "processor_s")]
        table.add_row(name, *(f"{value:.2f}" for value in (*row[:3], row[2] - row[0], row[3])))
    Console(width=140).print(table)
    raw = {"setting": setting("benchmarks.serving.startup", ("torch", "transformers")), "shape": options.shape, "rounds": rounds}
    print(f"raw: {keep(f'startup-{options.shape}', raw).name}")
    return 0


def start(python: str, engine: str, weight_format: str, folder: str, num_threads: int, more: Mapping[str, str]) -> dict[str, Any]:
    """Marks of one process, in seconds since just before it was started."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONPATH": path, **more}
    command = [python, "-m", "benchmarks.serving.startup", "--child", engine, weight_format, folder, str(num_threads)]
    began_s = time.time()
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("{")]
    if outcome.returncode or not lines:
        return {"error": (outcome.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    marks: dict[str, float] = json.loads(lines[-1])
    return {name: value - began_s if name != "processor_s" else value for name, value in marks.items()}


def child(engine: str, weight_format: str, folder: str, num_threads: str) -> int:
    for module in IMPORTS[engine]:
        importlib.import_module(module)
    marks = {"imports_s": time.time()}
    generate = importlib.import_module(f"benchmarks.serving.engines.{engine}_engine").load(folder, weight_format, int(num_threads))
    marks["model_s"] = time.time()
    generate([PROMPT], [1])
    marks["token_s"] = time.time()
    marks["processor_s"] = time.process_time()
    print(json.dumps(marks), flush=True)
    os._exit(0)  # no engine's own end is measured


if __name__ == "__main__":
    sys.exit(main())
