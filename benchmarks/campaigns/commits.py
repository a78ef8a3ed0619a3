"""Replays the commits of a documentation tree into one index, and compares it after each with an index that is built afresh.

    python -m benchmarks.campaigns commits [--commits 200] [--seed 0] [--repository PATH --tree docs ...] [--out benchmarks/results]

The commits are generated (files of eight formats that come, change, move, break, are mended, touched and reverted, one or many at a
time), or, with --repository, the last ones of a git history that touched the given paths. The promise, after each commit: sources,
passages, words, vectors and search results equal those of the fresh index; the report counts what the commit did; and no more is
converted or embedded than what it changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import tripod
from benchmarks.campaigns.hash_embedder import HashEmbedder
from benchmarks.campaigns.kill import QUERIES, contents, prose
from benchmarks.setting import setting
from tripod.retrieval.converters.registry import by_suffix, suffix_of
from tripod.retrieval.index import Index, Mode
from tripod.retrieval.sync import SyncReport

NUM_FILES = 60
_EPOCH = 1_700_000_000  # seconds; commits are hours apart after it, so that their times are old enough to be trusted
_HOUR = 3600

Tree: TypeAlias = Mapping[str, bytes]  # path -> content


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One commit."""

    number: int
    num_files: int
    num_touched: int  # files whose content or time the commit changed
    num_looked_at: int  # files that the sync read
    num_embedded: int  # passages that the sync embedded
    num_embedded_afresh: int  # passages that the fresh index embedded
    report: Mapping[str, int]
    failures: tuple[str, ...]  # empty if the promise held


class _Counting(HashEmbedder):
    def __init__(self) -> None:
        self.num_texts = 0

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]):  # type: ignore[no-untyped-def]
        self.num_texts += len(texts) if kind == "passage" else 0
        return await super().embed(texts, kind=kind)


def replay(trees: Iterator[tuple[Tree, frozenset[str]]], work: Path) -> Iterator[Outcome]:
    """Each tree, with the paths that were touched without a change, as one commit after the one before."""
    folder, database = work / "documents", work / "kb.db"
    folder.mkdir()
    before: Tree = {}
    for number, (tree, touched) in enumerate(trees):
        time_s = _EPOCH + number * _HOUR
        written = {path for path, content in tree.items() if before.get(path) != content} | touched
        for path in before.keys() - tree.keys():
            (folder / path).unlink()
        for path in written:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(tree[path])
            os.utime(folder / path, (time_s, time_s))
        counting, afresh = _Counting(), _Counting()
        report, num_looked_at = tripod.run(_sync(database, folder, counting))
        fresh = work / "fresh.db"
        fresh_report, _ = tripod.run(_sync(fresh, folder, afresh))
        failures = list(_differences(before, tree, database, fresh, report, fresh_report))
        failed = {source for source, _ in report.failed}
        if num_looked_at > len(written | failed):
            failures.append(f"{num_looked_at} files were read, and {len(written | failed)} had changed or failed before")
        changed = {path for path in written if before.get(path) != tree[path]}
        num_wanted = sum(len(rows) for source, rows in contents(fresh).items() if source in changed and rows[0][6] is not None)
        if counting.num_texts != num_wanted:
            failures.append(f"{counting.num_texts} passages were embedded, and the changed files have {num_wanted}")
        for suffix in ("", "-wal", "-shm"):
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
        yield Outcome(
            number=number,
            num_files=len(tree),
            num_touched=len(written),
            num_looked_at=num_looked_at,
            num_embedded=counting.num_texts,
            num_embedded_afresh=afresh.num_texts,
            report={name: getattr(report, name) for name in ("added", "changed", "removed", "unchanged")} | {"failed": len(report.failed)},
            failures=tuple(failures),
        )
        before = tree


def _differences(before: Tree, tree: Tree, database: Path, fresh: Path, report: SyncReport, fresh_report: SyncReport) -> Iterator[str]:
    if contents(database) != contents(fresh):
        yield "sources, passages or vectors differ from those of a fresh index"
    if tripod.run(_answers(database)) != tripod.run(_answers(fresh)):
        yield "search results differ from those of a fresh index"
    if report.failed != fresh_report.failed:
        yield "other files failed than in a fresh index"
    failed = {source for source, _ in report.failed}
    good, was_good = tree.keys() - failed, contents(database).keys()
    if good != was_good:
        yield "the index holds other sources than the files that can be read"
    if (report.seen, fresh_report.added) != (len(tree), len(good)):
        yield f"{report.seen} of {len(tree)} files were counted"
    num_same = sum(before.get(path) == tree[path] for path in good)
    if report.unchanged > num_same or report.removed > len(before.keys() - tree.keys()):
        yield f"{report} does not tell what the commit did"


async def _sync(database: Path, folder: Path, embedder: HashEmbedder) -> tuple[SyncReport, int]:
    num_looked_at = 0

    def look(_: object) -> None:
        nonlocal num_looked_at
        num_looked_at += 1

    async with Index(database, embedder=embedder) as index:
        return await index.sync(folder, progress=look), num_looked_at


async def _answers(database: Path) -> list[object]:
    async with Index(database, embedder=HashEmbedder()) as index:
        return [await index.search(query, 10, mode) for query in QUERIES for mode in get_args(Mode)]


# Commits that are made up


def generated(num_commits: int, seed: int, num_files: int = NUM_FILES) -> Iterator[tuple[Tree, frozenset[str]]]:
    """A tree of documents that people work on, as it is after each commit. Deterministic."""
    generator = random.Random(seed)
    tree = {_path(i, generator): b"" for i in range(num_files)}
    tree = {path: _content(path, generator) for path in tree}
    past: list[Tree] = []
    serial = num_files
    for _ in range(num_commits):
        past.append(tree)
        yield tree, frozenset()
        tree = dict(tree)
        num_changed = 1 if generator.random() < 0.7 else generator.randint(2, 9)
        kind = generator.choices(("change", "add", "remove", "move", "break", "revert", "touch"), (10, 4, 2, 2, 1, 1, 1))[0]
        paths = generator.sample(sorted(tree), min(num_changed, len(tree) - 5))
        if kind == "touch":
            yielded = tree
            yield yielded, frozenset(paths)
            continue
        for path in paths:
            if kind == "change":
                tree[path] = _edited(path, tree[path], generator)
            elif kind == "add":
                serial += 1
                new = _path(serial, generator)
                tree[new] = _content(new, generator)
            elif kind == "remove":
                del tree[path]
            elif kind == "move":
                serial += 1
                tree[_path(serial, generator, Path(path).suffix)] = tree.pop(path)
            elif kind == "break":
                tree[path] = b"\xff\xfe\xfa broken"
            elif kind == "revert":
                tree[path] = generator.choice(past).get(path, tree[path])


def _path(serial: int, generator: random.Random, suffix: str = "") -> str:
    return f"part{generator.randrange(5)}/page{serial:04}{suffix or generator.choice(sorted(_WRITERS))}"


def _content(path: str, generator: random.Random) -> bytes:
    paragraphs = [prose(generator, generator.randint(20, 90)) for _ in range(generator.randint(1, 6))]
    return _WRITERS[Path(path).suffix](prose(generator, 3), paragraphs).encode()


def _edited(path: str, content: bytes, generator: random.Random) -> bytes:
    """Mostly a new paragraph at the end; sometimes, and for formats with an end of their own, another text."""
    if Path(path).suffix in (".md", ".rst", ".txt") and generator.random() < 0.8:
        return content + f"\n\n{prose(generator, 40)}\n".encode()
    return _content(path, generator)


_WRITERS = {
    ".md": lambda title, body: f"# {title}\n\n" + "\n\n## More\n\n".join(body) + "\n",
    ".rst": lambda title, body: f"{title}\n{'=' * len(title)}\n\n" + "\n\n".join(body) + "\n",
    ".txt": lambda title, body: "\n\n".join([title, *body]) + "\n",
    ".html": lambda title, body: f"<title>{title}</title><nav>Home</nav><h1>{title}</h1>" + "".join(f"<p>{part}</p>" for part in body),
    ".json": lambda title, body: json.dumps({"title": title, "body": body}, indent=1),
    ".csv": lambda title, body: "number,text\n" + "".join(f"{i},{part}\n" for i, part in enumerate(body)),
    ".py": lambda title, body: f'"""{title}\n\n' + "\n\n".join(body) + '\n"""\n',
    ".ipynb": lambda title, body: json.dumps({"cells": [{"cell_type": "markdown", "source": f"# {title}\n\n{part}"} for part in body]}),
}


# Commits of a repository


def of_repository(repository: Path, paths: Sequence[str], num_commits: int) -> Iterator[tuple[Tree, frozenset[str]]]:
    """The trees of the last commits that touched the paths, oldest first."""
    commits = _git(repository, "log", "--first-parent", f"-{num_commits}", "--format=%H", "--", *paths).decode().split()
    blobs: dict[str, bytes] = {}
    suffixes = by_suffix()
    for commit in reversed(commits):
        tree: dict[str, bytes] = {}
        for entry in _git(repository, "ls-tree", "-r", "-z", commit, "--", *paths).decode().split("\0")[:-1]:
            kind, path = entry.split("\t")
            blob = kind.split()[2]
            if suffix_of(path) in suffixes:
                if blob not in blobs:
                    blobs[blob] = _git(repository, "cat-file", "blob", blob)
                tree[path] = blobs[blob]
        if tree:
            yield tree, frozenset()


def _git(repository: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=True).stdout


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held after each commit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns commits", description=__doc__)
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repository", type=Path, help="a git repository whose own history is replayed instead")
    parser.add_argument("--tree", nargs="+", default=["docs", "README.md", "CHANGELOG.md"], help="the paths of it that count")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    trees = (
        of_repository(options.repository, options.tree, options.commits) if options.repository else generated(options.commits, options.seed)
    )
    name = "commits-repository" if options.repository else "commits"
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="tripod-commits-") as work, (options.out / f"{name}.jsonl").open("w", encoding="utf-8") as log:
        log.write(json.dumps(setting("benchmarks.campaigns")) + "\n")
        for outcome in replay(trees, Path(work)):
            outcomes.append(outcome)
            log.write(json.dumps(asdict(outcome)) + "\n")
            if outcome.failures:
                print(f"commit {outcome.number}: {'; '.join(outcome.failures)}")
            if len(outcomes) == options.commits:
                break
    later = outcomes[1:]
    num_failed = sum(bool(outcome.failures) for outcome in outcomes)
    print(
        f"{len(outcomes)} commits on up to {max(outcome.num_files for outcome in outcomes)} files: {num_failed} broke the promise; "
        f"{sum(o.num_touched for o in later)} files changed and {sum(o.num_looked_at for o in later)} were read, "
        f"of which {sum(o.report['failed'] for o in later)} broken ones that are tried each time; "
        f"{sum(o.num_embedded for o in later)} passages embedded where fresh builds embed {sum(o.num_embedded_afresh for o in later)}"
    )
    return 1 if num_failed or len(outcomes) < 2 else 0
