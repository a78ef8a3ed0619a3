"""Builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs their tests and a fuzz of shapes with them.

    python -m benchmarks.campaigns sanitizers [--cases 300] [--seed 0] [--out benchmarks/results]

The promise: no report of either on any level of processor that runs here, in the tests of `tests/ops/kernels/cpu` and in the cases of
`kernel-fuzz`; a reading beyond the end of a tensor, planted first, must be found, or the silence of the rest would mean nothing. Needs g++
with its sanitizer libraries. What was run and what it said is kept in sanitizers.log.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.setting import setting
from tripod.ops.kernels.cpu import build

ROOT = Path(__file__).parents[2]
SANITIZERS = "address,undefined"
# Reads four numbers beyond the weights: `rms_norm` checks shapes in Python, so the kernel is called below that.
PLANTED = """
import torch
from tripod.ops.kernels.cpu import rows
x, weight, out = torch.ones(2, 64), torch.ones(60), torch.empty(2, 64)
rows._rms_norm(x.data_ptr(), None, weight.data_ptr(), 1e-5, out.data_ptr(), False, 2, 64)
"""


def environment(compiler: str) -> dict[str, str]:
    """That of a process that loads the checked kernels: the sanitizers' libraries must come before all others."""
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        **os.environ,
        "TRIPOD_SANITIZE": SANITIZERS,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:halt_on_error=1",  # Python leaves memory to the end of the process
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }


def main(arguments: list[str]) -> int:
    """0 if the sanitizers found what was planted and nothing else."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns sanitizers", description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="of the fuzz, on each level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    variables = environment("g++")
    runs = {
        "build": ["-m", "tripod.ops.kernels.cpu.build", *build.levels_here()],
        "planted": ["-c", PLANTED],
        "tests": ["-m", "pytest", "tests/ops/kernels/cpu", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-p", "no:faulthandler"],
        "fuzz": ["-m", "benchmarks.campaigns", "kernel-fuzz", "--cases", str(options.cases), "--seed", str(options.seed)],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    broken = []
    with (options.out / "sanitizers.log").open("w", encoding="utf-8") as log:
        log.write(json.dumps(setting("benchmarks.campaigns", ("torch",))) + "\n")
        for name, command in runs.items():
            began_s = time.monotonic()
            own = {**os.environ, "TRIPOD_SANITIZE": SANITIZERS} if name == "build" else variables  # the compiler itself needs no checks
            done = subprocess.run([sys.executable, *command], cwd=ROOT, env=own, capture_output=True, text=True, check=False)
            said = (done.stdout + done.stderr).replace(str(ROOT), ".")
            has_report = "AddressSanitizer" in said or "runtime error:" in said
            is_found = "ERROR: AddressSanitizer" in said and "tripod_rms_norm" in said  # it calls it by several names
            is_good = is_found if name == "planted" else done.returncode == 0 and not has_report
            if has_report:
                said = _heart(said)
            line = f"{name}: {'as promised' if is_good else 'BROKEN'}, exit {done.returncode}, {time.monotonic() - began_s:.0f} s"
            print(line, *([] if is_good else [said[-3000:]]), sep="\n", flush=True)
            log.write(f"== {line}\n{said[-20_000:]}\n")
            if not is_good:
                broken.append(name)
                if name in ("build", "planted"):  # what follows would say nothing
                    break
    return 1 if broken else 0


def _heart(report: str) -> str:
    """What was found and where in the room, without Python's frames and the map of the memory around it."""
    wanted = ("ERROR: AddressSanitizer", "runtime error:", "kernels/cpu/")
    return "\n".join(line for line in report.splitlines() if any(part in line for part in wanted))
