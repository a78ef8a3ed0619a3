"""Batches side by side: in order, each on one thread, and without changing what torch does elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tripod.engine.side_by_side import SideBySide


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_results_come_in_the_order_of_the_items() -> None:
    assert SideBySide().map(lambda item: item * item, list(range(20))) == [item * item for item in range(20)]


@pytest.mark.usefixtures("three_threads")
def test_several_items_are_computed_on_one_thread_each() -> None:
    seen = SideBySide().map(lambda _: (threading.current_thread().name, torch.get_num_threads()), list(range(50)))
    assert {num_threads for _, num_threads in seen} == {1}
    assert threading.current_thread().name not in {name for name, _ in seen}


@pytest.mark.usefixtures("three_threads")
def test_one_item_is_computed_by_the_caller_with_all_threads() -> None:
    assert SideBySide().map(lambda _: (threading.current_thread(), torch.get_num_threads()), [0]) == [(threading.current_thread(), 3)]


@pytest.mark.usefixtures("three_threads")
def test_other_threads_keep_their_number() -> None:
    SideBySide().map(lambda item: item, [1, 2, 3])
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (3, [3])


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_one_item_rises_at_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        SideBySide().map(lambda item: 1 // item, [1, 0, 2])
