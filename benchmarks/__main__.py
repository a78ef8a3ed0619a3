"""`make bench`: every benchmark in turn, each a program that can be run alone; raw results go to benchmarks/results/.

    python -m benchmarks [--data FOLDER]

FOLDER holds the collections that the programs name (cranfield, squad-dev, hotpotqa-100); what needs one that is absent is
not measured, and this says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.shared_data import DATA

PROGRAMS: dict[str, tuple[str, ...]] = {  # program -> the collections that it reads
    "benchmarks.embedding": ("squad-dev",),
    "benchmarks.retrieval.quality": ("cranfield", "squad-dev", "hotpotqa-100"),
    "benchmarks.abstention": ("squad-dev",),
    "benchmarks.answers": ("squad-dev",),
    "benchmarks.grammar_mask": ("tokenizers", "json-schema-bench"),
    "benchmarks.serving.compare": (),  # beside transformers; other peers with --python, see its head
    "benchmarks.serving.batching": (),
    "benchmarks.serving.startup": (),
    "benchmarks.serving.invariance": (),
    "benchmarks.serving.neighbours": (),
    "benchmarks.kernels.linear": (),
    "benchmarks.kernels.attention": (),
    "benchmarks.training_speed": (),
    "benchmarks.flows": (),  # beside the frameworks that are installed; others with --python, see its head
    "benchmarks.moe": (),
}


def main() -> int:
    """Returns the exit status: 0 if all that could be measured was."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run every benchmark and keep its raw results.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collections (default: %(default)s)")
    data: Path = parser.parse_args().data
    failed = []
    for program, collections in PROGRAMS.items():
        absent = [name for name in collections if not (data / name).is_dir()]
        if absent:
            print(f"{program}: not measured: {data} holds no {', '.join(absent)}", file=sys.stderr)
            continue
        print(f"== {program}", flush=True)
        if subprocess.run([sys.executable, "-m", program, *(["--data", str(data)] if collections else [])], check=False).returncode:
            failed.append(program)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
