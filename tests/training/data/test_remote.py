"""Reading training data by HTTP ranges, from a real server on loopback."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.conftest import WriteDocuments
from tripod.errors import ConfigError, DatasetError
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.training.data import remote
from tripod.training.data.batch_view import view_batch
from tripod.training.data.index_maps import OrderSpec, open_index_maps
from tripod.training.data.order import DataOrder, PackedRows
from tripod.training.data.remote import HttpFile, RemoteArray, RemoteDataset, RemoteMaps, ShardedBytes, http_file, open_remote_rows
from tripod.training.data.rows import write_rows
from tripod.training.data.shards import shard


class FileServer:
    """Serves the files of a folder, by ranges; counts what it sends. `failures` is a list of statuses to answer first."""

    def __init__(self, folder: Path) -> None:
        self.num_requests = 0
        self.num_bytes = 0
        self.failures: list[int] = []
        self.honours_ranges = True
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                served.num_requests += 1
                path = folder / self.path.lstrip("/").partition("?")[0]
                match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if served.failures:
                    self.answer(served.failures.pop(0), b"later")
                elif not path.is_file():
                    self.answer(404, b"not here")
                elif match is None or not served.honours_ranges:
                    self.answer(200, path.read_bytes())
                else:
                    content, start = path.read_bytes(), int(match[1])
                    body = content[start : int(match[2]) + 1]
                    if not body:
                        self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                    else:
                        self.answer(206, body, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}"})

            def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                served.num_bytes += len(body)
                self.send_response(status)
                for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    server = FileServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


class MemoryFile:
    """A `ByteSource` of bytes at hand."""

    name = "memory"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.num_bytes = len(content)

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= self.num_bytes
        return self.content[start:stop]


@pytest.fixture
def rows(write_numbered: WriteDocuments, tmp_path: Path) -> PackedRows:
    dataset = write_numbered([1 + i * 7 % 23 for i in range(400)], tmp_path / "data")
    spec = OrderSpec(seq_length=16, num_samples=250, seed=1234)
    return PackedRows(dataset, open_index_maps(dataset.prefix, np.array(dataset.sizes), spec))


def test_any_stretch_of_a_file_is_read(server: FileServer, client: httpx.Client, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1000)
    (tmp_path / "x.bin").write_bytes(content)
    file = HttpFile(f"{server.url}/x.bin", client, block_bytes=64)
    assert file.num_bytes == 1000
    for start, stop in [(0, 1), (63, 65), (0, 1000), (999, 1000), (128, 128), (100, 900)]:
        assert file.read(start, stop) == content[start:stop]
    with pytest.raises(DatasetError, match="it has 1000"):
        file.read(990, 1001)


def test_what_was_read_lately_is_not_fetched_again(
    server: FileServer, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_NUM_BLOCKS", 2)
    (tmp_path / "x.bin").write_bytes(bytes(1000))
    file = HttpFile(f"{server.url}/x.bin", client, block_bytes=100)
    file.read(0, 200)
    before = server.num_requests
    file.read(50, 150)
    assert server.num_requests == before
    file.read(250, 260)  # drops the oldest block
    file.read(0, 1)
    assert server.num_requests == before + 2


def test_a_pythia_batch_is_shown_from_shards_with_little_transfer(
    server: FileServer, client: httpx.Client, rows: PackedRows, tmp_path: Path
) -> None:
    write_rows(rows, 240, tmp_path / "document", np.dtype("<u2"))
    num_bytes = sum((tmp_path / name).stat().st_size for name in ("document.bin", "document.idx"))
    shard(tmp_path / "document.bin", shard_bytes=1001)  # no shard ends with a row, or even with a token
    (tmp_path / "document.bin").unlink()
    opened = open_remote_rows(f"{server.url}/document.idx", f"{server.url}/document-00000-of-00008.bin", client, block_bytes=128)
    order = DataOrder(opened, batch_size=8)
    assert np.array_equal(order.batch_at(17), DataOrder(rows, batch_size=8).batch_at(17))
    assert server.num_bytes < num_bytes / 5
    write_byte_tokenizer(tmp_path)
    assert view_batch(order, 17, load_tokenizer(tmp_path), part=slice(2)).rows[1].row == 17 * 8 + 1


def test_a_packed_batch_is_read_through_remote_index_maps(
    server: FileServer, client: httpx.Client, rows: PackedRows, tmp_path: Path
) -> None:
    def file(suffix: str) -> HttpFile:
        return HttpFile(f"{server.url}/data{suffix}", client, block_bytes=64)

    names = [f"_train_0_indexmap_250ns_16sl_1234s_{part}_idx.npy" for part in ("doc", "sample", "shuffle")]
    maps = RemoteMaps.open(*map(file, names), seq_length=16)
    distant = PackedRows(RemoteDataset.open(file(".idx"), file(".bin")), maps)
    assert distant.num_rows == rows.num_rows
    for row in (0, 1, 100, rows.num_rows - 1):
        assert distant.row(row).tolist() == rows.row(row).tolist()
        assert distant.spans(row) == rows.spans(row)
    with pytest.raises(ConfigError, match="local data only"):
        distant.places(0, 0)
    with pytest.raises(ConfigError, match="fetch the index"):
        _ = distant.fingerprint


def test_a_server_that_would_send_the_whole_file_is_not_listened_to(server: FileServer, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(10))
    server.honours_ranges = False
    with pytest.raises(DatasetError, match="ignores range requests"):
        HttpFile(f"{server.url}/x.bin", client).read(0, 5)


def test_an_overloaded_server_is_asked_again(
    server: FileServer, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    (tmp_path / "x.bin").write_bytes(b"0123456789")
    server.failures = [503, 429, 500]
    assert HttpFile(f"{server.url}/x.bin", client).read(2, 5) == b"234"
    server.failures = [503] * 4
    with pytest.raises(DatasetError, match="4 attempts; the last time the server answered 503"):
        HttpFile(f"{server.url}/x.bin", client).read(2, 5)


def test_a_missing_file_and_a_silent_server_are_named(
    server: FileServer, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    with pytest.raises(DatasetError, match=r"absent\.bin answered 404"):
        HttpFile(f"{server.url}/absent.bin", client).read(0, 1)
    (tmp_path / "empty.bin").touch()
    with pytest.raises(DatasetError, match="truncated, or empty"):
        HttpFile(f"{server.url}/empty.bin", client).read(0, 1)
    with pytest.raises(DatasetError, match="ConnectError"):
        HttpFile("http://127.0.0.1:9/x.bin", client).read(0, 1)


def test_a_file_that_changes_while_it_is_read_is_noticed(server: FileServer, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(300))
    file = HttpFile(f"{server.url}/x.bin", client, block_bytes=100)
    file.read(0, 1)
    (tmp_path / "x.bin").write_bytes(bytes(299))
    with pytest.raises(DatasetError, match="had 300 bytes before and has 299 now"):
        file.read(200, 201)


@given(content=st.binary(min_size=1, max_size=60), length=st.integers(1, 70), cut=st.tuples(st.integers(0, 60), st.integers(0, 60)))
@settings(deadline=None)
def test_shards_read_as_one_file(content: bytes, length: int, cut: tuple[int, int]) -> None:
    shards = ShardedBytes([MemoryFile(content[at : at + length]) for at in range(0, len(content), length)])
    start, stop = sorted(min(border, len(content)) for border in cut)
    assert shards.num_bytes == len(content)
    assert shards.read(start, stop) == content[start:stop]


def test_an_address_of_one_shard_names_all(client: httpx.Client) -> None:
    file = http_file("https://host/a/document-00003-of-00002.bin?download=true", client)
    assert isinstance(file, ShardedBytes)
    assert [part.name for part in file.shards] == [f"https://host/a/document-0000{i}-of-00002.bin?download=true" for i in range(3)]


@pytest.mark.parametrize("array", [np.arange(7, dtype=np.uint32), np.arange(10, dtype=np.int64).reshape(5, 2)])
def test_entries_of_a_remote_array_are_those_of_the_local_one(array: np.ndarray, tmp_path: Path, save: Callable[..., MemoryFile]) -> None:
    distant = RemoteArray(save(array))
    assert len(distant) == len(array)
    for key in (0, 3, -1, slice(1, 3), slice(None), slice(4, 99), slice(3, 1)):
        assert np.array_equal(distant[key], array[key])
    with pytest.raises(IndexError):
        distant[len(array)]


def test_a_truncated_remote_array_is_refused(save: Callable[..., MemoryFile]) -> None:
    content = save(np.arange(7)).content
    for cut in (len(content) - 1, 100, 5):
        with pytest.raises(DatasetError, match=r"truncated|not an array"):
            RemoteArray(MemoryFile(content[:cut]))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., MemoryFile]:
    def save(array: np.ndarray) -> MemoryFile:
        np.save(tmp_path / "array.npy", array)
        return MemoryFile((tmp_path / "array.npy").read_bytes())

    return save


def test_tokens_that_do_not_fit_the_index_are_refused(rows: PackedRows) -> None:
    index = rows.store.prefix.with_suffix(".idx").read_bytes()
    content = rows.store.prefix.with_suffix(".bin").read_bytes()
    assert RemoteDataset.open(MemoryFile(index), MemoryFile(content)).tokens(3, 1, 4).tolist() == [301, 302, 303]
    with pytest.raises(DatasetError, match="do not fit together"):
        RemoteDataset.open(MemoryFile(index), MemoryFile(content[:-4]))
    with pytest.raises(DatasetError, match="truncated"):
        RemoteDataset.open(MemoryFile(index[:-8]), MemoryFile(content))
