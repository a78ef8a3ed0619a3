"""Large files in pieces: cutting, joining and checking them against a list of SHA-256 sums.

Shards are named as Pythia's published data: `NAME-00003-of-00082.bin`, where the last number is the index of the last shard,
not the number of shards. All shards but the last have one length.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tripod.durable_files import atomic_file
from tripod.errors import ConfigError, DatasetError

PYTHIA_SHARD_BYTES = 5_000_000_000
_CHUNK = 1 << 22
_NUMBERS = re.compile(r"-(\d{5})-of-(\d{5})$")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


def shard(file: Path, *, shard_bytes: int = PYTHIA_SHARD_BYTES, folder: Path | None = None) -> list[Path]:
    """Cut a file into shards of `shard_bytes` (the last one shorter), beside it or in `folder`. The file stays.

    Raises:
        ConfigError: `shard_bytes` is not positive, or there would be more than 100 000 shards.
        DatasetError: the file is empty.
    """
    num_bytes = file.stat().st_size
    if shard_bytes < 1 or num_bytes > shard_bytes * 100_000:
        raise ConfigError(f"shard_bytes={shard_bytes} for {num_bytes} bytes; give a positive size that makes at most 100000 shards")
    if not num_bytes:
        raise DatasetError(f"{file} is empty; there is nothing to cut")
    last = (num_bytes - 1) // shard_bytes
    folder = folder or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    shards = [folder / f"{file.stem}-{i:05}-of-{last:05}{file.suffix}" for i in range(last + 1)]
    with file.open("rb") as source:
        for path in shards:
            with path.open("wb") as target:
                left = shard_bytes
                while left and (block := source.read(min(_CHUNK, left))):
                    target.write(block)
                    left -= len(block)
    return shards


def find_shards(first: Path) -> list[Path]:
    """All shards of the set that `first` (any of its shards) belongs to, in order.

    Raises:
        DatasetError: the name is not a shard's, one is missing, or one but the last has another length than the first.
    """
    match = _NUMBERS.search(first.stem)
    if match is None:
        raise DatasetError(f"{first.name} is not named as a shard; expected NAME-00000-of-00020{first.suffix or '.bin'}")
    name, last = first.stem[: match.start()], int(match[2])
    shards = [first.with_name(f"{name}-{i:05}-of-{last:05}{first.suffix}") for i in range(last + 1)]
    if missing := [path.name for path in shards if not path.is_file()]:
        raise DatasetError(f"{len(missing)} of {last + 1} shards are missing in {first.parent}: {', '.join(missing[:5])}; fetch them")
    length = shards[0].stat().st_size
    for path in shards[:-1]:
        if path.stat().st_size != length:
            raise DatasetError(f"{path} has {path.stat().st_size} bytes, the first shard {length}; it is truncated or of another set")
    if not 0 < shards[-1].stat().st_size <= length:
        raise DatasetError(f"{shards[-1]} has {shards[-1].stat().st_size} bytes, expected 1 to {length} as the last shard")
    return shards


def unshard(first: Path, out: Path) -> None:
    """Join the shards that `first` belongs to; `out` appears when it is complete.

    Raises:
        DatasetError: see `find_shards`.
    """
    shards = find_shards(first)
    with atomic_file(out) as target:
        for path in shards:
            with path.open("rb") as source:
                shutil.copyfileobj(source, target, _CHUNK)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashReport:
    """Files compared with a list of hashes; each name of the list is in one of the three."""

    matching: tuple[str, ...]
    differing: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        return not self.differing and not self.missing


def read_hashes(file: Path) -> dict[str, str]:
    """Name -> SHA-256 in lower case. Lines read "NAME HASH" as Pythia's list, or "HASH  NAME" as sha256sum writes.

    Raises:
        DatasetError: a line is neither, or a name occurs twice.
    """
    hashes: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        first, _, second = line.strip().partition(" ")
        second = second.strip()
        name, digest = (second.removeprefix("*"), first) if _DIGEST.fullmatch(first) else (first, second)
        if not name or not _DIGEST.fullmatch(digest):
            raise DatasetError(f"{file}, line {number}: {line!r} is neither 'NAME SHA256' nor 'SHA256  NAME'")
        if name in hashes:
            raise DatasetError(f"{file}, line {number}: {name} is listed twice")
        hashes[name] = digest.lower()
    return hashes


def verify_hashes(hash_list: Path, folder: Path) -> HashReport:
    """Compare the files of a folder with a list of their SHA-256 sums.

    Raises:
        DatasetError: the list cannot be read.
    """
    outcome: dict[str, list[str]] = {"matching": [], "differing": [], "missing": []}
    for name, expected in read_hashes(hash_list).items():
        path = folder / name
        if not path.is_file():
            outcome["missing"].append(name)
            continue
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        outcome["matching" if actual == expected else "differing"].append(name)
    return HashReport(matching=tuple(outcome["matching"]), differing=tuple(outcome["differing"]), missing=tuple(outcome["missing"]))
