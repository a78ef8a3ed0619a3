"""Every number that the released files can give is the printed one, to its last digit."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from tripod.analysis.replication import draw_card, replicate, write_card
from tripod.analysis.replication_cards import CARDS, cards_named
from tripod.errors import ConfigError

COUNTS = {  # printed numbers, and those that cannot be checked
    "pythia-zero-shot": (16 * 8, 0),
    "gender-intervention": (54, 8),
    "term-frequency": (7 * 3 * 2, 0),
    "polypythias-maps": (9, 0),
    "pythia-scaling-law": (0, 0),
    "routing": (0, 0),
}


@pytest.mark.parametrize("name", CARDS)
def test_each_printed_number_comes_out(name: str, shared_data: Path) -> None:
    outcome = replicate(CARDS[name], shared_data)
    num_printed, num_uncheckable = COUNTS[name]
    assert [cell for part in outcome.cells for cell in part if cell.mark == "differs"] == []
    assert outcome.count("equal") == num_printed - num_uncheckable
    assert outcome.count("not checkable") == num_uncheckable


def test_a_value_that_was_changed_is_marked(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "pythia-evals", tmp_path / "pythia-evals")
    path = tmp_path / "pythia-evals" / "v1.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    for one in lines:
        if one["path"].endswith("pythia-12b/zero-shot/12b_step143000.json"):
            one["json"]["results"]["piqa"]["acc"] += 0.0012
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(one) + "\n" for one in lines)
    outcome = replicate(CARDS["pythia-zero-shot"], tmp_path)
    [differs] = [cell for part in outcome.cells for cell in part if cell.mark == "differs"]
    assert (differs.row, differs.column, differs.printed, differs.found) == ("pythia-12b", "piqa acc", ".760", ".761")
    assert "≠ .761 (.760)" in outcome.page()


def test_a_card_is_a_page_with_its_numbers_and_its_picture(shared_data: Path, tmp_path: Path) -> None:
    outcome = replicate(CARDS["polypythias-maps"], shared_data)
    write_card(outcome, tmp_path, shared_data)
    page = (tmp_path / "polypythias-maps.md").read_text()
    assert "**9 equal** of 9 printed numbers" in page
    drawn = (tmp_path / "polypythias-maps.png").read_bytes()
    (tmp_path / "polypythias-maps.png").unlink()
    draw_card(CARDS["polypythias-maps"], tmp_path)  # from the table beside it, as the documentation's build does
    assert (tmp_path / "polypythias-maps.png").read_bytes() == drawn


def test_what_was_published_as_a_picture_alone_has_its_figures_on_the_card(shared_data: Path) -> None:
    page = replicate(CARDS["routing"], shared_data).page()
    [olmoe] = [line for line in page.splitlines() if line.startswith("| OLMoE-1B-7B | all |")]
    assert "97.7%" in olmoe


def test_the_cards_in_the_documentation_are_what_the_files_give(shared_data: Path) -> None:
    folder = Path(__file__).parents[2] / "docs" / "replications"
    for name, card in CARDS.items():
        assert (folder / f"{name}.md").read_text() == replicate(card, shared_data).page()
        assert card.plot is not None
        assert (folder / f"{name}.png").is_file()
        if name != "pythia-scaling-law":  # its last digits are the optimiser's
            assert (folder / f"{name}.plot.csv").read_text() == card.plot.table(shared_data).to_csv()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"v1\.jsonl\.gz is not there"):
        replicate(CARDS["pythia-zero-shot"], tmp_path)
    with pytest.raises(ConfigError, match="there is no card 'x'"):
        cards_named("x")
