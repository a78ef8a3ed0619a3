"""Training data on a web server, read by HTTP range requests: any batch is shown without fetching the data.

Everything that local files can do forwards works here too: a data set is a `RemoteDataset`, its index maps `RemoteMaps`, and
`PackedRows` and `PreshuffledRows` take them as they take local ones.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, DatasetError
from tripod.training.data.indexed_dataset import HEADER, IndexLayout
from tripod.training.data.rows import PreshuffledRows

if TYPE_CHECKING:
    import httpx

_BLOCK_BYTES = 1 << 16  # read at once: a round trip costs more than this
_NUM_BLOCKS = 256  # kept of one file
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.25  # doubled with each attempt
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(\.\w+)(?=$|\?)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class ByteSource(Protocol):
    """Bytes that can be read anywhere."""

    @property
    def name(self) -> str: ...

    @property
    def num_bytes(self) -> int: ...

    def read(self, start: int, stop: int) -> bytes: ...  # [start, stop), all of them, within num_bytes


@dataclass(slots=True, eq=False)
class HttpFile:
    """One file on a server that honours ranges. What was read lately is kept, in blocks."""

    url: str
    client: httpx.Client
    block_bytes: int = _BLOCK_BYTES
    _num_bytes: int | None = field(default=None, init=False)
    _blocks: OrderedDict[int, bytes] = field(default_factory=OrderedDict, init=False)

    @property
    def name(self) -> str:
        return self.url

    @property
    def num_bytes(self) -> int:
        if self._num_bytes is None:
            self._load(0, 1)  # the answer to any range names the length
        assert self._num_bytes is not None
        return self._num_bytes

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file.

        Raises:
            DatasetError: the file is not there, ends before `stop`, cannot be fetched after several attempts, or its server does not
                answer ranges.
        """
        if not 0 <= start <= stop <= self.num_bytes:
            raise DatasetError(f"bytes [{start}, {stop}) of {self.url} were asked for; it has {self.num_bytes}")
        if start == stop:
            return b""
        first, last = start // self.block_bytes, (stop - 1) // self.block_bytes
        missing = [block for block in range(first, last + 1) if block not in self._blocks]
        if missing:
            self._load(missing[0], missing[-1] + 1)
        content = b"".join(self._blocks[block] for block in range(first, last + 1))
        for block in range(first, last + 1):
            self._blocks.move_to_end(block)
        while len(self._blocks) > _NUM_BLOCKS:
            self._blocks.popitem(last=False)
        return content[start - first * self.block_bytes : stop - first * self.block_bytes]

    def _load(self, first: int, stop: int) -> None:
        """Fetch blocks [first, stop) by one request, and learn the length of the file."""
        content = self._fetch(first * self.block_bytes, stop * self.block_bytes)
        for block in range(first, stop):
            at = (block - first) * self.block_bytes
            self._blocks[block] = content[at : at + self.block_bytes]

    def _fetch(self, start: int, stop: int) -> bytes:
        import httpx

        wait_s = _FIRST_WAIT_S
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(wait_s)
                wait_s *= 2
            try:
                with self.client.stream("GET", self.url, headers=headers, follow_redirects=True) as response:
                    if response.status_code == 429 or response.status_code >= 500:
                        reason = f"the server answered {response.status_code}"
                        continue
                    return self._checked(response, start, stop)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{self.url} could not be read in {_ATTEMPTS} attempts; the last time {reason}; try again later")

    def _checked(self, response: httpx.Response, start: int, stop: int) -> bytes:
        """The body, after the header has shown that it is what was asked for: a server that sends all is not listened to."""
        status = response.status_code
        if status == 416:
            raise DatasetError(f"{self.url} ends before byte {start}; it is truncated, or empty")
        if status == 200:
            raise DatasetError(f"the server of {self.url} ignores range requests and would send all of the file; download it instead")
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if status != 206 or match is None:
            raise DatasetError(f"{self.url} answered {status} to a range request, expected 206 with Content-Range; check the address")
        given_start, given_last, num_bytes = map(int, match.groups())
        if self._num_bytes not in (None, num_bytes):
            raise DatasetError(f"{self.url} had {self._num_bytes} bytes before and has {num_bytes} now; open it again")
        expected = min(stop, num_bytes)
        content = response.read()
        if (given_start, given_last + 1) != (start, expected) or len(content) != expected - start:
            raise DatasetError(f"{self.url} sent {len(content)} bytes from {given_start} on; asked for [{start}, {expected})")
        self._num_bytes = num_bytes
        return content


@dataclass(frozen=True, slots=True, eq=False)
class ShardedBytes:
    """Shards read as the file that they were cut from: all but the last have the length of the first."""

    shards: Sequence[ByteSource]

    @property
    def name(self) -> str:
        return self.shards[0].name

    @property
    def num_bytes(self) -> int:
        return self.shards[0].num_bytes * (len(self.shards) - 1) + self.shards[-1].num_bytes

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the whole.

        Raises:
            DatasetError: a shard cannot be read or is too short.
        """
        length = self.shards[0].num_bytes
        content = b""
        while start < stop:
            number = min(start // length, len(self.shards) - 1)
            begin = number * length
            end = stop if number == len(self.shards) - 1 else min(stop, begin + length)
            content += self.shards[number].read(start - begin, end - begin)
            start = end
        return content


def http_file(url: str, client: httpx.Client, *, block_bytes: int = _BLOCK_BYTES) -> ByteSource:
    """A file by its address, or all shards of it by the address of one (`...-00000-of-00020.bin`)."""
    match = _SHARD.search(url)
    if match is None:
        return HttpFile(url, client, block_bytes)
    last = int(match[2])
    names = (f"-{number:05}-of-{last:05}{match[3]}" for number in range(last + 1))
    return ShardedBytes([HttpFile(url[: match.start()] + name + url[match.end() :], client, block_bytes) for name in names])


@dataclass(frozen=True, slots=True, eq=False)
class RemoteDataset:
    """A `TokenStore` that fetches what it is asked for: a few entries of the index, and the tokens."""

    index: ByteSource
    content: ByteSource
    layout: IndexLayout

    @staticmethod
    def open(index: ByteSource, content: ByteSource) -> RemoteDataset:
        """Read the header of a remote index; `content` may be shards.

        Raises:
            DatasetError: not a sound index, or the tokens are shorter or longer than it says.
        """
        layout = IndexLayout.read(index.read(0, min(HEADER.size, index.num_bytes)), index.num_bytes, index.name)
        dataset = RemoteDataset(index, content, layout)
        num_bytes = 0
        if len(dataset):
            begin, size = dataset.locate(len(dataset) - 1)
            num_bytes = begin + size * layout.dtype.itemsize
        if num_bytes and content.num_bytes != num_bytes:
            raise DatasetError(
                f"{content.name} has {content.num_bytes} bytes in all, {index.name} says {num_bytes}; they do not fit together"
            )
        return dataset

    def __len__(self) -> int:
        return self.layout.num_sequences

    def locate(self, sequence: int) -> tuple[int, int]:
        """Where a sequence begins, in bytes, and how many tokens it has."""
        if not 0 <= sequence < len(self):
            raise DatasetError(f"sequence {sequence} of {self.index.name} was asked for; it has sequences 0 to {len(self) - 1}")
        size_at, pointer_at = self.layout.sizes_at + 4 * sequence, self.layout.pointers_at + 8 * sequence
        size = int(np.frombuffer(self.index.read(size_at, size_at + 4), "<i4")[0])
        return int(np.frombuffer(self.index.read(pointer_at, pointer_at + 8), "<i8")[0]), size

    def size(self, sequence: int, /) -> int:
        return self.locate(sequence)[1]

    def tokens(self, sequence: int, start: int = 0, stop: int | None = None, /) -> NDArray[Any]:
        begin, size = self.locate(sequence)
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise DatasetError(f"tokens [{start}, {stop}) of sequence {sequence} of {self.index.name} were asked for; it has {size}")
        itemsize = self.layout.dtype.itemsize
        return np.frombuffer(self.content.read(begin + start * itemsize, begin + stop * itemsize), self.layout.dtype)


class RemoteArray:
    """A `.npy` file of one or two dimensions, of which entries and slices are fetched."""

    def __init__(self, source: ByteSource) -> None:
        head = io.BytesIO(source.read(0, min(1024, source.num_bytes)))  # numpy's headers of such arrays have 128 bytes
        try:
            version = np.lib.format.read_magic(head)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read_header(head)
        except ValueError as error:
            raise DatasetError(f"{source.name} is not an array that numpy saved: {error}") from error
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        if is_fortran or not shape or dtype.hasobject or source.num_bytes != head.tell() + shape[0] * row_bytes:
            raise DatasetError(
                f"{source.name} has {source.num_bytes} bytes for shape {shape} of {dtype}; it is truncated or not an index map"
            )
        self.shape: tuple[int, ...] = shape
        self._source, self._dtype, self._begin, self._row_bytes = source, dtype, head.tell(), row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, int) and not -len(self) <= key < len(self):
            raise IndexError(f"entry {key} of {self._source.name}, which has {len(self)}")
        start, stop, step = (key if isinstance(key, slice) else slice(key % len(self), key % len(self) + 1)).indices(len(self))
        if step != 1:
            raise IndexError(f"a slice of step {step} of {self._source.name}; only adjacent entries are fetched")
        content = self._source.read(self._begin + start * self._row_bytes, self._begin + max(start, stop) * self._row_bytes)
        entries = np.frombuffer(content, self._dtype).reshape(-1, *self.shape[1:])
        return entries if isinstance(key, slice) else entries[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RemoteMaps:
    """GPT-NeoX's three index maps on a server."""

    seq_length: int
    doc_idx: RemoteArray
    sample_idx: RemoteArray
    shuffle_idx: RemoteArray

    @property
    def fingerprint(self) -> str:
        raise ConfigError(
            "the fingerprint of a remote order is not known: it depends on all document sizes; fetch the index and open it here"
        )

    @staticmethod
    def open(doc_idx: ByteSource, sample_idx: ByteSource, shuffle_idx: ByteSource, *, seq_length: int) -> RemoteMaps:
        """Read the headers of the three files.

        Raises:
            DatasetError: one is not a whole array, or they are not maps of one order.
        """
        maps = RemoteMaps(
            seq_length=seq_length, doc_idx=RemoteArray(doc_idx), sample_idx=RemoteArray(sample_idx), shuffle_idx=RemoteArray(shuffle_idx)
        )
        if maps.sample_idx.shape != (len(maps.shuffle_idx) + 1, 2) or len(maps.doc_idx.shape) != 1:
            raise DatasetError(
                f"the maps have shapes {maps.doc_idx.shape}, {maps.sample_idx.shape}, {maps.shuffle_idx.shape}; "
                "expected [documents], [samples + 1, 2], [samples]"
            )
        return maps


def open_remote_rows(index_url: str, tokens_url: str, client: httpx.Client, *, block_bytes: int = _BLOCK_BYTES) -> PreshuffledRows:
    """Pre-shuffled rows on a server, such as Pythia's: `document.idx` and one of the shards `document-00000-of-00020.bin`.

    Raises:
        DatasetError: see `RemoteDataset.open`; or the first and last sequence differ in length, so they are not rows.
    """
    dataset = RemoteDataset.open(
        http_file(index_url, client, block_bytes=block_bytes), http_file(tokens_url, client, block_bytes=block_bytes)
    )
    if not len(dataset) or dataset.size(0) < 2 or dataset.size(0) != dataset.size(len(dataset) - 1):
        raise DatasetError(f"{index_url} does not hold rows of one length; open it as documents, with index maps")
    return PreshuffledRows(dataset, dataset.size(0) - 1)
