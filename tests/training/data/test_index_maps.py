"""GPT-NeoX's index maps: a golden vector, a walk token by token, the caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.errors import ConfigError, DatasetError
from tripod.training.data import index_maps
from tripod.training.data.index_maps import IndexMaps, OrderSpec, build_index_maps, neox_num_samples, open_index_maps, split_documents

GOLDEN_SIZES = np.array([5, 9, 3, 12, 7, 1, 8], np.int32)
GOLDEN = OrderSpec(seq_length=8, num_samples=9, seed=1234)


def same(left: IndexMaps, right: IndexMaps) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name)) and getattr(left, name).dtype == getattr(right, name).dtype
        for name in ("doc_idx", "sample_idx", "shuffle_idx")
    )


def brute_force(sizes: list[int], first: int, stop: int, seq_length: int, num_samples: int, seed: int) -> tuple[list, list, list]:
    """The rules once more, token by token over explicit lists; nothing is shared with the code under test."""
    tokens_of_epoch = sum(sizes[first:stop])
    num_epochs = 1
    while (num_epochs * tokens_of_epoch - 1) // seq_length < num_samples:
        num_epochs += 1
    rng = np.random.RandomState(seed)
    documents = np.array(list(range(first, stop)) * num_epochs, np.int32)
    rng.shuffle(documents)
    stream = [(position, token) for position, document in enumerate(documents) for token in range(sizes[document])]
    boundaries = [(0, 0)]
    begin = 0
    while begin + seq_length < len(stream):
        begin += seq_length
        boundaries.append(stream[begin])
    samples = np.arange(len(boundaries) - 1, dtype=np.int64)
    rng.shuffle(samples)
    return documents.tolist(), boundaries, samples.tolist()


def test_the_golden_vector_holds() -> None:
    maps = build_index_maps(GOLDEN_SIZES, GOLDEN)
    assert maps.num_epochs == 2
    assert maps.doc_idx.tolist() == [5, 3, 0, 4, 6, 2, 2, 0, 1, 1, 4, 5, 6, 3]
    golden_samples = [(0, 0), (1, 7), (2, 3), (3, 6), (4, 7), (7, 1), (8, 4), (9, 3), (10, 2), (12, 2), (13, 2), (13, 10)]
    assert [tuple(boundary) for boundary in maps.sample_idx.tolist()] == golden_samples
    assert maps.shuffle_idx.tolist() == [3, 9, 2, 1, 7, 5, 4, 0, 8, 6, 10]
    assert (maps.doc_idx.dtype, maps.sample_idx.dtype, maps.shuffle_idx.dtype) == (np.int32, np.int32, np.uint32)


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=30).filter(any),
    seq_length=st.integers(1, 40),
    num_samples=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    chunk=st.integers(1, 50),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_the_maps_equal_a_walk_token_by_token(
    sizes: list[int], seq_length: int, num_samples: int, seed: int, chunk: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(sizes) - 1))
    stop = data.draw(st.integers(first + 1, len(sizes)))
    if not any(sizes[first:stop]):
        first, stop = 0, len(sizes)
    spec = OrderSpec(seq_length=seq_length, num_samples=num_samples, seed=seed, documents=range(first, stop))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_maps, "_CHUNK", chunk)  # so that boundaries fall before, on and behind the seams
        maps = build_index_maps(np.array(sizes, np.int32), spec)
    doc_idx, sample_idx, shuffle_idx = brute_force(sizes, first, stop, seq_length, num_samples, seed)
    assert maps.doc_idx.tolist() == doc_idx
    assert [tuple(boundary) for boundary in maps.sample_idx.tolist()] == sample_idx
    assert maps.shuffle_idx.tolist() == shuffle_idx
    assert maps.num_samples >= num_samples


def test_epochs_mix() -> None:
    maps = build_index_maps(np.full(1000, 10, np.int32), OrderSpec(seq_length=10, num_samples=1900, seed=1234))
    assert maps.num_epochs == 2
    first_half = np.unique(maps.doc_idx[:1000], return_counts=True)[1]
    assert 150 < np.count_nonzero(first_half == 2) < 350  # a quarter, were the copies thrown into either half; none if epochs were apart


@pytest.mark.parametrize("variant", ["", "_packedpi_ac"])
def test_files_of_gpt_neox_are_read_under_both_of_its_names(tmp_path: Path, variant: str) -> None:
    doc_idx, sample_idx, shuffle_idx = brute_force(GOLDEN_SIZES.tolist(), 0, 7, 8, 9, 1234)
    stem = f"{tmp_path}/pile_train_0_indexmap_9ns_8sl_1234s{variant}"
    np.save(f"{stem}_doc_idx.npy", np.array(doc_idx, np.int32))
    np.save(f"{stem}_sample_idx.npy", np.array(sample_idx, np.int32))
    np.save(f"{stem}_shuffle_idx.npy", np.array(shuffle_idx, np.uint32))
    before = sorted(tmp_path.iterdir())
    maps = open_index_maps(tmp_path / "pile", GOLDEN_SIZES, GOLDEN)
    assert same(maps, build_index_maps(GOLDEN_SIZES, GOLDEN))
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_written_is_what_numpy_would_save(tmp_path: Path) -> None:
    maps = open_index_maps(tmp_path / "pile", GOLDEN_SIZES, GOLDEN, name="valid_0")
    for part in ("doc_idx", "sample_idx", "shuffle_idx"):
        np.save(tmp_path / "numpy.npy", getattr(build_index_maps(GOLDEN_SIZES, GOLDEN), part))
        ours = tmp_path / f"pile_valid_0_indexmap_9ns_8sl_1234s_{part}.npy"
        assert ours.read_bytes() == (tmp_path / "numpy.npy").read_bytes()
        assert not getattr(maps, part).flags.writeable  # mapped from the file
    assert len(list(tmp_path.glob("pile*"))) == 3


def test_a_cache_left_by_other_data_is_refused(tmp_path: Path) -> None:
    open_index_maps(tmp_path / "pile", GOLDEN_SIZES, GOLDEN)
    swapped = GOLDEN_SIZES[[1, 0, 2, 3, 4, 5, 6]]  # the same number of documents and of tokens
    with pytest.raises(DatasetError, match=r"sample \d+ has \d+ tokens by these sizes, expected 9"):
        open_index_maps(tmp_path / "pile", swapped, GOLDEN)
    with pytest.raises(DatasetError, match="their shapes are"):
        open_index_maps(tmp_path / "pile", GOLDEN_SIZES[:-1], GOLDEN)


def test_the_fingerprint_follows_everything_that_the_order_depends_on_and_nothing_else() -> None:
    def fingerprint(sizes: np.ndarray = GOLDEN_SIZES, **changes: int) -> str:
        fields = {"seq_length": 8, "num_samples": 9, "seed": 1234} | changes
        return build_index_maps(sizes, OrderSpec(**fields)).fingerprint

    assert fingerprint(num_samples=10) == fingerprint()  # still two epochs: the same maps
    others = [fingerprint(num_samples=12), fingerprint(seed=1), fingerprint(seq_length=9), fingerprint(GOLDEN_SIZES[::-1])]
    assert len({fingerprint(), *others}) == 5


@pytest.mark.parametrize(
    ("split", "num_documents", "expected"),
    [
        ("969,30,1", 1000, [969, 999, 1000]),
        ("1", 7, [7, 7, 7]),
        ("1,1", 5, [3, 5, 5]),  # 2.5 rounds to 2 twice: one short, so each border moves up by one
        ("1,1,1", 5, [1, 3, 5]),  # 1.67 rounds to 2 three times: one too many, so each border moves down by one
    ],
)
def test_split_borders_are_rounded_one_after_the_other(split: str, num_documents: int, expected: list[int]) -> None:
    parts = split_documents(split, num_documents)
    assert [part.stop for part in parts] == expected
    assert [part.start for part in parts] == [0, *expected[:2]]


def test_pythia_asks_for_half_a_percent_more() -> None:
    assert neox_num_samples(143_000 * 1024) == 147_164_160


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,2", "0,0", "nan"])
def test_a_split_that_says_nothing_is_refused(split: str) -> None:
    with pytest.raises(ConfigError, match="969,30,1"):
        split_documents(split, 10)


def test_documents_without_tokens_are_refused() -> None:
    with pytest.raises(DatasetError, match="no token at all"):
        build_index_maps(np.zeros(3, np.int32), GOLDEN)


@pytest.mark.parametrize(("num_tokens", "dtype"), [(2**31 - 2, np.int32), (2**31 - 1, np.int64)])
def test_entries_become_64_bits_where_gpt_neox_makes_them_so(num_tokens: int, dtype: type) -> None:
    # N = (tokens - 1) // 2; GPT-NeoX changes over where 2 (N + 1) reaches 2^31. Too large to build here, so the plan is asked.
    plan = index_maps._Plan.of(np.array([num_tokens], np.int32), OrderSpec(seq_length=2, num_samples=1, seed=1))
    assert plan.num_samples == (num_tokens - 1) // 2
    assert plan.sample_dtype == dtype


def test_a_part_outside_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="of a data set of 7"):
        build_index_maps(GOLDEN_SIZES, OrderSpec(seq_length=8, num_samples=9, seed=1, documents=range(5, 8)))
