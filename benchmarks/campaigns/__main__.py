"""`python -m benchmarks.campaigns NAME [options]` runs one campaign at full size; `--help` after a name tells its options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from benchmarks.campaigns import (
    bfcl,
    books,
    citations,
    commits,
    drain,
    durable,
    exactness,
    kernel_fuzz,
    kill,
    kill_postgres,
    mcp,
    overload,
    resume,
    routing,
    sanitizers,
    schemathesis_cases,
    seeds,
    soak,
    structured,
    studies,
    timings,
    twins,
    wheel,
)

CAMPAIGNS: Mapping[str, Callable[[list[str]], int]] = {
    "bfcl": bfcl.main,
    "books": books.main,
    "citations": citations.main,
    "commits": commits.main,
    "drain": drain.main,
    "durable": durable.main,
    "exactness": exactness.main,
    "kernel-fuzz": kernel_fuzz.main,
    "kill": kill.main,
    "kill-postgres": kill_postgres.main,
    "mcp": mcp.main,
    "overload": overload.main,
    "resume": resume.main,
    "routing": routing.main,
    "sanitizers": sanitizers.main,
    "schemathesis": schemathesis_cases.main,
    "seeds": seeds.main,
    "soak": soak.main,
    "structured": structured.main,
    "studies": studies.main,
    "timings": timings.main,
    "twins": twins.main,
    "wheel": wheel.main,
}


def main() -> int:
    """Returns the exit status: 0 if the promise held at every point."""
    if len(sys.argv) < 2 or sys.argv[1] not in CAMPAIGNS:
        print(f"usage: python -m benchmarks.campaigns {{{','.join(sorted(CAMPAIGNS))}}} [options]", file=sys.stderr)
        return 2
    return CAMPAIGNS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
