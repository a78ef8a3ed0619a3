"""A folder to the list of files that will be read, and the count of those that will not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tripod.errors import ConfigError
from tripod.retrieval.converters.registry import suffix_of


@dataclass(frozen=True, slots=True)
class File:
    """A file to read. `source` is its path relative to the folder, with forward slashes."""

    source: str
    path: Path
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a folder holds."""

    files: tuple[File, ...]  # sorted by source
    unlisted: tuple[str, ...]  # folders that could not be looked into, as the beginnings of their files' sources
    ignored: Mapping[str, int]  # why -> how many files or folders: "hidden", "excluded", "suffix .docx", ...


def scan(folder: Path, *, suffixes: Collection[str], exclude: Sequence[str] = ()) -> Scan:
    """List a folder and all below it. Links to files are followed, links to folders are not: they can form a loop.

    Args:
        folder: must exist.
        suffixes: which files are read, such as ".md".
        exclude: shell patterns, matched against each relative path and each name, such as "test" or "drafts/*.md"; an
            excluded folder is not entered.

    Raises:
        ConfigError: `folder` is not a folder that can be listed.
    """
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder; give the folder that holds the documents")
    files: list[File] = []
    ignored: Counter[str] = Counter()
    unlisted: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            entries = list(os.scandir(folder / prefix))
        except OSError as error:
            if not prefix:
                raise ConfigError(f"{str(folder)!r} cannot be listed: {error.strerror}") from None
            ignored[f"folder not listed: {error.strerror}"] += 1
            unlisted.append(prefix)
            continue
        for entry in entries:
            source = prefix + entry.name
            if reason := _refusal(entry, source, suffixes, exclude):
                ignored[reason] += 1
            elif entry.is_dir():
                pending.append(f"{source}/")
            else:
                try:
                    stat = entry.stat()
                    size, mtime_ns = stat.st_size, stat.st_mtime_ns
                except FileNotFoundError:
                    continue  # vanished since it was listed
                except OSError:
                    size, mtime_ns = -1, -1  # reading it will say why not
                files.append(File(source, Path(entry.path), size, mtime_ns))
    return Scan(tuple(sorted(files, key=lambda file: file.source)), tuple(unlisted), dict(sorted(ignored.items())))


def _refusal(entry: os.DirEntry[str], source: str, suffixes: Collection[str], exclude: Sequence[str]) -> str | None:
    """Why an entry is not read; None if it is."""
    if entry.name.startswith("."):
        return "hidden"
    if any(fnmatchcase(source, pattern) or fnmatchcase(entry.name, pattern) for pattern in exclude):
        return "excluded"
    try:
        source.encode()
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except UnicodeEncodeError:
        return "name is not UTF-8"
    except OSError:
        return "link in a loop"
    if is_folder:
        if entry.is_symlink():
            return "link to a folder"
        if entry.name == "__pycache__" or _is_virtual_environment(Path(entry.path)):
            return "caches and virtual environments"
        return None
    if not is_file:
        return "broken link" if entry.is_symlink() else "not a regular file"
    suffix = suffix_of(entry.name)
    return None if suffix in suffixes else f"suffix {suffix}" if suffix else "no suffix"


def _is_virtual_environment(folder: Path) -> bool:
    try:
        return (folder / "pyvenv.cfg").exists()
    except PermissionError:
        return False
