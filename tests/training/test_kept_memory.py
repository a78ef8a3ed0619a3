"""Memory that is freed stays with the process, in a process of its own: the advice cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS_OF_LATER_ROUNDS = """
import resource, sys, torch
from tripod.training.kept_memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(20):  # the first leave small blocks between the large ones
    faults()
print(sum(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_block_that_returns_is_not_cleared_again() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES" and not name.startswith("MALLOC_")}
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS_OF_LATER_ROUNDS, how], env=environment)) for how in ("kept", "default")
    )
    assert kept < 10  # of these rounds' blocks none; some of the interpreter's
    assert given_back > 90  # 96 large pages, or 49,152 of 4 KiB
