"""The three index maps by which GPT-NeoX orders training data, bit for bit.

Documents of all epochs are shuffled together (`doc_idx`), laid end to end and cut into samples of `seq_length` + 1 tokens, where
each sample begins with the last token of the one before (`sample_idx`); then the samples are shuffled (`shuffle_idx`). Both
shuffles draw from one Mersenne Twister, `numpy.random.RandomState(seed)`, whose stream NumPy has frozen. So the order is a pure
function of the document sizes, the sequence length, the number of epochs and the seed.

At the size of the Pile (210 million documents, two epochs) the arrays have gigabytes: they are written piece by piece and
memory-mapped, under the names that GPT-NeoX gives to its own caches.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.durable_files import atomic_file
from tripod.errors import ConfigError, DatasetError
from tripod.training.data.progress import Progress, no_progress

_CHUNK = 1 << 18  # documents walked at once: their cumulative sizes stay in a core's cache
_MAX_INT32 = np.iinfo(np.int32).max
_NUM_CHECKED = 256  # samples of a cached map whose length is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexMaps:
    """An order of samples. D documents in the run (all epochs), N samples.

    Row i of the run is sample k = shuffle_idx[i]: the tokens from sample_idx[k] to sample_idx[k + 1], both included.
    """

    seq_length: int  # tokens of a sample that have a target, so a sample has one more
    num_epochs: int
    fingerprint: str  # SHA-256 of everything that the order depends on
    doc_idx: NDArray[np.int32]  # [D] documents in the order in which they are read
    sample_idx: NDArray[Any]  # [N + 1, 2] position in doc_idx, token within that document; int32 or int64
    shuffle_idx: NDArray[Any]  # [N] sample of each row; uint32 or int64

    @property
    def num_samples(self) -> int:
        return len(self.shuffle_idx)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSpec:
    """What an order is asked for. With the document sizes, it determines the index maps."""

    seq_length: int
    num_samples: int  # at least so many; epochs are added until there are
    seed: int
    documents: range | None = None  # a part of the data set, as `split_documents` gives; None: all of it

    def __post_init__(self) -> None:
        if self.seq_length < 1 or self.num_samples < 1:
            raise ConfigError(f"seq_length={self.seq_length}, num_samples={self.num_samples}; both must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed}; the generator takes seeds from 0 to 2^32 - 1")
        if self.documents is not None and (self.documents.step != 1 or not self.documents):
            raise ConfigError(f"documents={self.documents}; give a range of at least one document, with step 1")


def num_epochs_for(tokens_per_epoch: int, spec: OrderSpec) -> int:
    """The smallest number of epochs whose tokens make `spec.num_samples` samples: ceil((num_samples * seq_length + 1) / tokens)."""
    return -(-(spec.num_samples * spec.seq_length + 1) // tokens_per_epoch)


def build_index_maps(sizes: NDArray[np.int32], spec: OrderSpec, *, progress: Progress = no_progress) -> IndexMaps:
    """Compute the maps in memory.

    Args:
        sizes: [n] tokens of each document of the data set.
        spec: what is asked for.
        progress: told the stages "shuffle documents", "cut samples" and "shuffle samples".

    Raises:
        ConfigError: `spec.documents` reaches beyond the data set.
        DatasetError: the documents hold no token, or are too many for an int32.
    """
    plan = _Plan.of(sizes, spec)
    rng = np.random.RandomState(spec.seed)
    doc_idx = _shuffled_documents(plan, rng, progress)
    sample_idx = np.empty((plan.num_samples + 1, 2), plan.sample_dtype)
    filled = 0
    for chunk in _sample_boundaries(doc_idx, plan, progress):
        sample_idx[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    assert filled == len(sample_idx)
    shuffle_idx = _shuffled_samples(plan, rng, progress)
    return _maps(plan, doc_idx, sample_idx, shuffle_idx)


def open_index_maps(
    prefix: Path, sizes: NDArray[np.int32], spec: OrderSpec, *, name: str = "train_0", progress: Progress = no_progress
) -> IndexMaps:
    """Memory-map the maps that lie beside a data set, after computing and writing them where they are absent.

    Files of GPT-NeoX 1.0 and of its later versions are read; those written here bear the names of 1.0. Memory is bounded by the
    larger of the two shuffled arrays plus `sizes`. Several processes may call this at once; each file appears when it is complete.

    Args:
        prefix: the data set's path without .bin and .idx, with which the maps' names begin; or such a path in another folder, where
            that of the data cannot be written.
        sizes: [n] tokens of each document of the data set.
        spec: what is asked for.
        name: GPT-NeoX's name of the part: "train_0", "valid_0", "test_0" where its paths are lists, else without "_0".
        progress: as for `build_index_maps`.

    Raises:
        ConfigError: `spec.documents` reaches beyond the data set.
        DatasetError: the documents hold no token, or cached maps were made from other data: the name of a cache says nothing of
            the sizes, so a data set that was built again leaves a stale one behind.
    """
    plan = _Plan.of(sizes, spec)
    for files in _cache_files(prefix, spec, name):
        if all(file.is_file() for file in files):
            doc_idx, sample_idx, shuffle_idx = (np.load(file, mmap_mode="r").view(np.ndarray) for file in files)
            maps = _maps(plan, doc_idx, sample_idx, shuffle_idx)
            if reason := _why_not_of(maps, plan):
                raise DatasetError(f"{files[0].name} and its two companions were not made from this data: {reason}; delete them")
            return maps
    files = next(_cache_files(prefix, spec, name))
    rng = np.random.RandomState(spec.seed)
    doc_idx = _shuffled_documents(plan, rng, progress)
    _save(files[0], [doc_idx], doc_idx.shape, doc_idx.dtype)
    _save(files[1], _sample_boundaries(doc_idx, plan, progress), (plan.num_samples + 1, 2), plan.sample_dtype)
    del doc_idx  # not needed beside the second shuffle
    shuffle_idx = _shuffled_samples(plan, rng, progress)
    _save(files[2], [shuffle_idx], shuffle_idx.shape, shuffle_idx.dtype)
    return _maps(plan, *(np.load(file, mmap_mode="r").view(np.ndarray) for file in files))


def split_documents(split: str, num_documents: int) -> tuple[range, range, range]:
    """Documents for training, validation and test, as GPT-NeoX reads "969,30,1".

    Parts are in proportion; borders are rounded (half to even) one after the other, and what they overshoot is taken off all.

    Raises:
        ConfigError: not one to three non-negative numbers with a positive sum.
    """
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ConfigError(f"split={split!r}; give one to three shares such as '969,30,1'")
    total = sum(shares)
    borders = [0]
    for share in [*shares, 0.0, 0.0][:3]:
        borders.append(borders[-1] + round(share / total * float(num_documents)))
    excess = borders[-1] - num_documents
    first, second, third = (border - excess for border in borders[1:])
    return range(first), range(first, second), range(second, third)


def neox_num_samples(num_rows: int, *, weight: float = 1.0) -> int:
    """How many samples GPT-NeoX asks of one data set of a list: half a percent more than its share of the rows of the run."""
    return math.ceil(num_rows * weight * 1.005)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    sizes: NDArray[np.int32]  # [n] of the whole data set, aligned
    documents: range
    spec: OrderSpec
    num_epochs: int
    num_samples: int

    @staticmethod
    def of(sizes: NDArray[np.int32], spec: OrderSpec) -> _Plan:
        documents = range(len(sizes)) if spec.documents is None else spec.documents
        if not 0 <= documents.start <= documents.stop <= len(sizes):
            raise ConfigError(f"documents={documents} of a data set of {len(sizes)}; choose a part of it")
        if len(sizes) > _MAX_INT32:
            raise DatasetError(f"{len(sizes)} documents are more than an int32 can number; split the data set")
        sizes = np.require(sizes, requirements="A")  # a view into a file is not aligned; numpy would copy it at each step
        tokens_per_epoch = int(sizes[documents.start : documents.stop].sum(dtype=np.int64))
        if not tokens_per_epoch:
            raise DatasetError(f"{len(documents)} documents hold no token at all; nothing can be trained on them")
        num_epochs = num_epochs_for(tokens_per_epoch, spec)
        return _Plan(
            sizes=sizes,
            documents=documents,
            spec=spec,
            num_epochs=num_epochs,
            num_samples=(num_epochs * tokens_per_epoch - 1) // spec.seq_length,
        )

    @property
    def num_positions(self) -> int:
        return self.num_epochs * len(self.documents)

    @property
    def sample_dtype(self) -> np.dtype[Any]:
        is_large = 2 * (self.num_samples + 1) > _MAX_INT32 or self.num_positions > _MAX_INT32
        return np.dtype(np.int64 if is_large else np.int32)


def _maps(plan: _Plan, doc_idx: NDArray[np.int32], sample_idx: NDArray[Any], shuffle_idx: NDArray[Any]) -> IndexMaps:
    return IndexMaps(
        seq_length=plan.spec.seq_length,
        num_epochs=plan.num_epochs,
        fingerprint=_fingerprint(plan),
        doc_idx=doc_idx,
        sample_idx=sample_idx,
        shuffle_idx=shuffle_idx,
    )


def _fingerprint(plan: _Plan) -> str:
    sizes = plan.sizes[plan.documents.start : plan.documents.stop]
    facts = {
        "order": "gpt-neox packed",
        "sizes": hashlib.sha256(np.ascontiguousarray(sizes, "<i4").data).hexdigest(),
        "documents": [plan.documents.start, plan.documents.stop],
        "seq_length": plan.spec.seq_length,
        "num_epochs": plan.num_epochs,
        "seed": plan.spec.seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _shuffled_documents(plan: _Plan, rng: np.random.RandomState, progress: Progress) -> NDArray[np.int32]:
    progress("shuffle documents", 0, plan.num_positions)
    doc_idx = np.empty(plan.num_positions, np.int32)
    doc_idx.reshape(plan.num_epochs, -1)[:] = np.arange(plan.documents.start, plan.documents.stop, dtype=np.int32)
    rng.shuffle(doc_idx)  # all epochs together: the copies of a document fall anywhere in the run
    progress("shuffle documents", plan.num_positions, plan.num_positions)
    return doc_idx


def _shuffled_samples(plan: _Plan, rng: np.random.RandomState, progress: Progress) -> NDArray[Any]:
    progress("shuffle samples", 0, plan.num_samples)
    shuffle_idx = np.arange(plan.num_samples, dtype=np.int64 if plan.num_samples >= 2**32 - 2 else np.uint32)
    rng.shuffle(shuffle_idx)
    progress("shuffle samples", plan.num_samples, plan.num_samples)
    return shuffle_idx


def _sample_boundaries(doc_idx: NDArray[np.int32], plan: _Plan, progress: Progress) -> Iterator[NDArray[Any]]:
    """The rows of sample_idx, in chunks: boundary k stands on token k * seq_length of the documents laid end to end.

    Boundary 0 is (0, 0) even where the first documents are empty; every other one stands on a token.
    """
    seq_length = plan.spec.seq_length
    yield np.zeros((1, 2), plan.sample_dtype)
    next_boundary, num_tokens = 1, 0
    for start in range(0, len(doc_idx), _CHUNK):
        sizes = plan.sizes.take(doc_idx[start : start + _CHUNK])
        ends = np.cumsum(sizes, dtype=np.int64)
        # Token positions relative to the chunk's first token, which keeps the sums in one place.
        tokens = np.arange(next_boundary, (num_tokens + int(ends[-1]) - 1) // seq_length + 1) * seq_length - num_tokens
        positions = np.searchsorted(ends, tokens, side="right")
        chunk = np.empty((len(tokens), 2), plan.sample_dtype)
        chunk[:, 0] = positions + start
        chunk[:, 1] = tokens - (ends[positions] - sizes[positions])
        yield chunk
        next_boundary += len(tokens)
        num_tokens += int(ends[-1])
        progress("cut samples", min(start + _CHUNK, len(doc_idx)), len(doc_idx))


def _why_not_of(maps: IndexMaps, plan: _Plan) -> str | None:
    """Why maps read from a cache cannot be those of the plan; None if nothing speaks against it.

    Counting the tokens of a few hundred samples all over the run finds maps of other sizes without walking through all.
    """
    shapes = (maps.doc_idx.shape, maps.sample_idx.shape, maps.shuffle_idx.shape)
    expected = ((plan.num_positions,), (plan.num_samples + 1, 2), (plan.num_samples,))
    if shapes != expected:
        return f"their shapes are {shapes}, these sizes make {expected}"
    for sample in np.unique(np.linspace(0, plan.num_samples - 1, _NUM_CHECKED).astype(np.int64)):
        (first, offset), (last, end) = maps.sample_idx[sample : sample + 2].tolist()
        documents = maps.doc_idx[first : last + 1]
        if len(documents) != last - first + 1 or int(documents.min()) < plan.documents.start or int(documents.max()) >= plan.documents.stop:
            return f"sample {sample} reads documents outside {plan.documents}"
        num_tokens = int(plan.sizes[documents[:-1]].sum(dtype=np.int64)) - offset + end
        if num_tokens != plan.spec.seq_length or end >= plan.sizes[documents[-1]]:
            return f"sample {sample} has {num_tokens + 1} tokens by these sizes, expected {plan.spec.seq_length + 1}"
    return None


def _cache_files(prefix: Path, spec: OrderSpec, name: str) -> Iterator[tuple[Path, Path, Path]]:
    """The three names of GPT-NeoX 1.0, then those of its later versions (packed, chopping allowed)."""
    stem = f"{prefix.name}_{name}_indexmap_{spec.num_samples}ns_{spec.seq_length}sl_{spec.seed}s"
    for variant in (stem, stem + "_packedpi_ac"):
        doc, sample, shuffle = (prefix.with_name(f"{variant}_{part}_idx.npy") for part in ("doc", "sample", "shuffle"))
        yield doc, sample, shuffle


def _save(file: Path, chunks: Iterator[NDArray[Any]] | list[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """What `numpy.save` writes, but in pieces."""
    with atomic_file(file) as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        for chunk in chunks:
            chunk.tofile(stream)
