"""Every Python block of the README and of the how-to pages runs as printed, in a folder that holds what the pages speak of."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.live_server import live_server
from tests.serving.tiny import NAME, open_tiny, write_tiny
from tripod.engine.engine import EngineConfig
from tripod.serving.app import build_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [(page, block) for page in PAGES for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)]

_DOCUMENT = """\
# Retrying

The retry wrapper waits as long as the server asked for, and then asks again.
It gives up after three attempts.

# Syncing

A sync compares the folder with what the index holds.

# Blocks

Blocks of the cache are freed when the request that owns them ends.
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with `docs/` and `checkpoints/tiny`, and the address of a server for the pages that talk to one."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "docs").mkdir()
    (folder / "docs" / "guide.md").write_text(_DOCUMENT, encoding="utf-8")
    checkpoint = write_tiny(folder / "checkpoints" / "tiny", max_positions=2048)  # tools in a prompt take some
    engine = open_tiny(checkpoint, EngineConfig())
    with live_server(build_app(engine)) as server:
        yield folder, server.url
    asyncio.run(engine.aclose())


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page.relative_to(ROOT)}-{n}" for n, (page, _) in enumerate(BLOCKS)])
def test_a_block_runs_as_printed(
    page: Path, block: str, workplace: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url = workplace
    monkeypatch.chdir(folder)
    exec(compile(block, str(page), "exec", dont_inherit=True), {"__name__": "__main__", "BASE_URL": url, "MODEL": NAME})
    assert capsys.readouterr().out.strip()  # every example shows something


def test_the_pages_hold_examples() -> None:
    assert {page.name for page, _ in BLOCKS} >= {"README.md", "ask-a-folder.md", "serve-a-checkpoint.md", "use-the-engine.md"}


def test_every_link_between_the_pages_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
