"""The pool of threads: every piece once, barriers that hold, forks, and more threads than cores."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.ops.kernels.cpu.levels import needs_kernels
from tripod.errors import ConfigError
from tripod.ops.kernels.cpu import threads as pool_threads
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, is_available
from tripod.ops.kernels.cpu.threads import follow_torch, held_awake, num_threads, set_num_threads, work_alone

pytestmark = needs_kernels
needs_threads_of_torch = pytest.mark.skipif(
    is_available() and not pool_threads._has_threads_of_torch(), reason="torch's OpenMP is not found in this process"
)
_count_pieces_of_torch = KernelFunction("tripod_count_pieces_of_torch", POINTER, ctypes.c_int64, restype=ctypes.c_int)
_is_shared = KernelFunction("tripod_is_shared", restype=ctypes.c_int)
_count_pieces = KernelFunction("tripod_count_pieces", POINTER, ctypes.c_int64, ctypes.c_int, restype=ctypes.c_int)


def _counts(pieces: int, rounds: int) -> tuple[list[int], int]:
    counts = torch.zeros(pieces, dtype=torch.int32)
    taking_part = _count_pieces(counts.data_ptr(), pieces, rounds)
    return counts.tolist(), taking_part


@pytest.fixture(params=[1, 2, 5])  # 5 is more than the machine has: a thread that waits must let the others run
def threads(request: pytest.FixtureRequest) -> int:
    set_num_threads(request.param)
    return int(request.param)


@pytest.mark.parametrize("pieces", [0, 1, 4, 5, 1000])
def test_every_thread_takes_part_and_every_piece_is_done_once_a_round(threads: int, pieces: int) -> None:
    assert _counts(pieces, rounds=7) == ([7] * pieces, threads)


def test_many_short_regions_follow_one_another_with_the_workers_awake_or_parked(threads: int) -> None:
    with held_awake():
        assert all(_counts(9, rounds=1) == ([1] * 9, threads) for _ in range(100))
    assert all(_counts(9, rounds=1) == ([1] * 9, threads) for _ in range(50))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads(threads: int) -> None:
    assert _counts(8, rounds=2)[1] == threads
    child = os.fork()
    if child == 0:
        os._exit(0 if _counts(8, rounds=2) == ([2] * 8, threads) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _counts(8, rounds=2) == ([2] * 8, threads)


def test_the_size_of_the_pool_is_what_was_set(threads: int) -> None:
    assert num_threads() == threads
    with pytest.raises(ConfigError, match=r"set_num_threads\(0\)"):
        set_num_threads(0)


def test_a_thread_that_works_alone_does_all_of_its_pieces_beside_the_pool(threads: int) -> None:
    def alone(_: int) -> list[tuple[list[int], int]]:
        work_alone()
        return [_counts(100, rounds=3) for _ in range(50)]

    with ThreadPoolExecutor(2) as executor:
        beside = executor.map(alone, range(2))
        shared = [_counts(100, rounds=3) for _ in range(50)]
        assert all(counted == ([3] * 100, 1) for counts in beside for counted in counts)
    assert shared == [([3] * 100, threads)] * 50


def _counts_of_torch(pieces: int) -> tuple[list[int], int]:
    counts = torch.zeros(pieces, dtype=torch.int32)
    taking_part = _count_pieces_of_torch(counts.data_ptr(), pieces)
    return counts.tolist(), taking_part


@needs_threads_of_torch
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("pieces", [0, 1, 1000])
def test_a_trainers_region_runs_on_as_many_of_torchs_threads_as_torch_may_use_whatever_the_pools_size(count: int, pieces: int) -> None:
    set_num_threads(3)
    torch.set_num_threads(count)
    follow_torch()
    assert _counts_of_torch(pieces) == ([1] * pieces, count)
    assert num_threads() == 3, "the pool of an engine in this process was taken apart"


@needs_threads_of_torch
def test_a_thread_that_never_asked_torch_for_anything_gets_the_number_that_torch_was_given() -> None:
    torch.set_num_threads(2)

    def first_of_all() -> int:
        follow_torch()
        return _counts_of_torch(10)[1]

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(first_of_all).result() == 2


def test_where_torchs_threads_are_not_found_the_pool_is_made_as_big_as_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_threads, "_has_threads_of_torch", lambda: 0)
    torch.set_num_threads(2)
    follow_torch()
    assert num_threads() == 2


def test_a_thread_that_works_alone_does_the_regions_of_a_trainer_alone_too() -> None:
    torch.set_num_threads(2)
    with ThreadPoolExecutor(1, initializer=work_alone) as executor:
        assert executor.submit(_counts_of_torch, 10).result() == ([1] * 10, 1)


@pytest.mark.alone
def test_a_pool_notices_that_another_program_wants_its_cores_and_still_does_every_piece_once() -> None:
    def is_alone_in_a_new_pool() -> bool:
        set_num_threads(2)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            _counts(1000, rounds=2000)
        return not _is_shared()

    assert any(is_alone_in_a_new_pool() for _ in range(20))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        until = time.monotonic() + 30.0
        while not _is_shared() and time.monotonic() < until:
            assert _counts(1000, rounds=2000) == ([2000] * 1000, 2)
        assert _is_shared()
        assert _counts(1000, rounds=100) == ([100] * 1000, 2)
    finally:
        for process in busy:
            process.kill()
            process.wait()
