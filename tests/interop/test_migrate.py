"""The others' blocks of the migration guide run as printed. Ours are run with those of all pages, in `tests/test_documentation.py`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate.md"
BLOCKS = re.findall(r'^```python title="([^"]+)"\n(.*?)^```', PAGE.read_text(encoding="utf-8"), re.M | re.S)
PACKAGES = {"LangChain": "langchain_core", "Haystack": "haystack", "LlamaIndex": "llama_index.core"}


@pytest.mark.filterwarnings("ignore")  # of the others' own code
@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[f"{number}-{title.split(',')[0]}" for number, (title, _) in enumerate(BLOCKS)])
def test_a_block_of_another_library_runs_as_printed(
    title: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library, _, why_not = title.partition(", not run: ")
    if why_not:
        compile(block, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)  # at least it is Python
        pytest.skip(why_not)
    pytest.importorskip(PACKAGES[library], reason=f"{library} is not installed")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("A sync compares the folder with what the index holds.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_the_guide_shows_ten_jobs_and_runs_most_of_the_others_blocks() -> None:
    jobs = re.split(r"^## \d+\. ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert len(jobs) == 10
    assert all(library in job for job in jobs for library in PACKAGES)
    assert all(re.search(r"^```python\n", job, re.M) for job in jobs)
    assert sum("not run" in title for title, _ in BLOCKS) < len(BLOCKS) / 3
