"""An intervention end to end: three seeds, a branch that swaps pronouns and a control each, and what the study says of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import tripod
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.gender_intervention import GenderIntervention
from tripod.analysis.study import Finding, measurement_path, run_study
from tripod.errors import ConfigError
from tripod.evaluation.agreement import mcnemar
from tripod.evaluation.table import Table
from tripod.text.byte_level import write_byte_tokenizer
from tripod.training.branch import REPORT, begin_branch, read_branch, report_changes
from tripod.training.data.build import build_dataset
from tripod.training.loop import train
from tripod.training.recipe_file import recipe_from
from tripod.training.run import Run

WORDS = {"he": "she", "him": "her", "his": "her"}
TEXTS = ("The driver said he was late. ", "A clerk gave him his hat. ", "Rain fell on the road. ", "he, him; his: all. ")
STEPS, BRANCHED_AT, ROWS = 30, 6, 8


def as_text(token_ids: list[int]) -> str:
    """A character a byte; the end of a document is no letter."""
    return "".join(chr(token) if token < 256 else "\0" for token in token_ids)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Run, Run]]:
    """Branch and control of each of three seeds."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("suite")
    (folder / "text").mkdir()
    for number in range(80):
        chosen = [TEXTS[(number * 7 + at * at) % 4] for at in range(6)]
        (folder / "text" / f"{number:02}.txt").write_text("".join(chosen), encoding="utf-8")
    write_byte_tokenizer(folder / "tokenizer")
    build_dataset([folder / "text"], folder / "tokenizer", folder / "train", append_eod=True)
    (folder / "swap.yaml").write_text(f"interventions: [{{kind: swap, words: {json.dumps(WORDS)}}}]")
    pairs = []
    for seed in (1, 2, 3):
        recipe = recipe_from(
            {
                "run": str(folder / f"seed{seed}"),
                "num_steps": STEPS,
                "seeds": {"initialization": seed, "order": seed, "dropout": seed},
                "model": {"vocab_size": 259, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 256},
                "data": {
                    "prefixes": [str(folder / "train")],
                    "tokenizer": str(folder / "tokenizer"),
                    "maps_folder": str(folder / f"maps{seed}"),
                },
                "batch": {"rows": ROWS, "seq_length": 64},
                "optimizer": {"lr": 1e-2},
                "checkpoints": {"log_until": 0, "every": BRANCHED_AT},
            }
        )
        train(recipe)
        branch = read_branch(f"{folder}/seed{seed}@step{BRANCHED_AT}", folder / "swap.yaml")
        for one in (branch.branch, branch.control):
            begin_branch(one, branch.parent, branch.step)
        pairs.append((train(branch.branch, resume=True).run, train(branch.control, resume=True).run))
    return pairs


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in the form of CrowS-Pairs: in two of three the masculine pronoun comes first; and a control of pairs without one."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "crows-pairs").mkdir()
    places = ("late", "here", "tired", "glad", "sure", "right", "early", "lost", "new", "old", "wet", "cold")
    rows = []
    for number, word in enumerate(places):
        first, second = ("he", "she") if number % 3 else ("she", "he")
        rows.append(f"{number},The driver said {first} was {word}.,The driver said {second} was {word}.,stereo,gender")
    rows += [f"{100 + number},Rain fell on the {word} road.,Snow fell on the {word} road.,stereo,age" for number, word in enumerate(places)]
    text = "\n".join([",sent_more,sent_less,stereo_antistereo,bias_type", *rows]) + "\n"
    (folder / "crows-pairs" / "crows_pairs_anonymized.csv").write_text(text)
    return folder


@pytest.fixture(scope="module")
def found(suite: list[tuple[Run, Run]], pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    addresses = [f"{run.folder}@step{STEPS}" for pair in suite for run in pair]
    return {
        group: tripod.run(
            run_study(
                GenderIntervention(tasks=("crows_pairs_english",), group=group, data=str(pairs_file)),
                find_checkpoints(addresses),
                tmp_path_factory.mktemp(group),
            )
        )
        for group in ("gender", "age")
    }


def test_the_study_finds_what_the_swap_did_in_every_seed_and_over_seeds(found: dict[str, Finding]) -> None:
    margins = found["gender"].table.where(measure="masculine_margin")
    assert margins.column("seed") == ["1", "2", "3", "all"]
    for row in margins:
        assert row["high"] < 0  # type: ignore[operator]  # the masculine sentence became less likely
    [over_seeds] = margins.where(seed="all")
    assert over_seeds["interval_of"] == "seeds"
    assert over_seeds["difference"] == pytest.approx(sum(margins.numbers("difference")[:3]) / 3)


def test_the_interval_over_seeds_is_student_s_of_their_differences(found: dict[str, Finding]) -> None:
    for (_, measure), rows in found["gender"].table.by("task", "measure").items():
        apart = rows.where(lambda row: row["seed"] != "all").numbers("difference")
        [over] = rows.where(seed="all")
        low, high = scipy.stats.t.interval(0.95, 2, np.mean(apart), scipy.stats.sem(apart)) if np.ptp(apart) else (apart[0], apart[0])
        assert (over["low"], over["high"]) == pytest.approx((low, high), rel=1e-3), measure  # of a table of Student's t to 3 digits


def test_items_are_paired_whatever_their_order(found: dict[str, Finding], suite: list[tuple[Run, Run]], pairs_file: Path) -> None:
    study = GenderIntervention(tasks=("crows_pairs_english",), group="gender", data=str(pairs_file))
    checkpoints = find_checkpoints([f"{run.folder}@step{STEPS}" for pair in suite for run in pair])
    kept = found["gender"].folder / "measured"
    measured = [(checkpoint, Table.read(measurement_path(study, checkpoint, kept))) for checkpoint in checkpoints]
    turned = [(one, Table(table.columns, table.rows[:: 1 if "control" in one.name else -1])) for one, table in measured]
    expected, rows = (study.conclude(one).rows for one in (measured, turned))
    assert all(row[name] == pytest.approx(other[name]) for row, other in zip(rows, expected, strict=True) for name in ("low", "mcnemar_p"))


def test_the_masculine_sentence_is_followed_whichever_of_a_pair_is_the_stereotype(found: dict[str, Finding]) -> None:
    margins, masculine = (found["gender"].table.where(measure=name) for name in ("margin", "masculine_margin"))
    assert masculine.numbers("num_items") == [12.0] * 4
    # Of every third pair the stereotyping sentence is the feminine one, whose margin goes up.
    assert all(one < 1.5 * other < 0 for one, other in zip(masculine.numbers("difference"), margins.numbers("difference"), strict=True))
    assert all(high < 0 for high in masculine.numbers("high"))
    assert len(found["age"].table.where(measure="masculine_margin")) == 0  # no pronouns


def test_pairs_that_the_swap_does_not_touch_differ_far_less(found: dict[str, Finding]) -> None:
    [touched] = found["gender"].table.where(measure="masculine_margin", seed="all")
    [other] = found["age"].table.where(measure="margin", seed="all")
    assert abs(float(str(other["difference"]))) < 0.5 * abs(float(str(touched["difference"])))


def test_yes_or_no_items_come_with_an_exact_test(found: dict[str, Finding]) -> None:
    for row in found["gender"].table.where(measure="pct_stereotype").where(lambda row: row["seed"] != "all"):
        first_only, second_only = int(str(row["num_control_only"])), int(str(row["num_branch_only"]))
        first = [True] * first_only + [False] * (12 - first_only)
        second = [False] * first_only + [True] * second_only + [False] * (12 - first_only - second_only)
        assert row["mcnemar_p"] == mcnemar(first, second).p_value
        assert float(str(row["branch"])) - float(str(row["control"])) == pytest.approx((second_only - first_only) / 12)


def test_the_swapped_share_of_tokens_is_that_of_an_independent_count(suite: list[tuple[Run, Run]]) -> None:
    """A token is a byte here, so the words can be exchanged in the control's rows by a regular expression and counted."""
    for branch, control in suite:
        num_words = num_changed = num_tokens = 0
        ours, theirs = branch.order().rows, control.order().rows
        for row in range(BRANCHED_AT * ROWS, STEPS * ROWS):
            before = as_text(theirs.row(row).tolist())
            parts, is_new = [], []
            for part in re.split(r"\b(he|him|his)\b", before):
                new = WORDS.get(part, part)
                parts.append(new)
                is_new += [part in WORDS] * len(new)
                num_words += part in WORDS
            assert as_text(ours.row(row).tolist()).startswith("".join(parts)[: len(before)])
            num_changed += sum(is_new[: len(before)])  # what became longer is cut at its end
            num_tokens += len(before)
        [report] = report_changes(branch)
        assert (report.num_tokens, report.num_tokens_changed) == (num_tokens, num_changed)
        assert num_words > 100
        assert json.loads((branch.folder / REPORT).read_text())[0]["share_of_tokens"] == num_changed / num_tokens


def test_a_branch_without_its_control_is_named(suite: list[tuple[Run, Run]], pairs_file: Path, tmp_path: Path) -> None:
    study = GenderIntervention(tasks=("crows_pairs_english",), data=str(pairs_file))
    with pytest.raises(ConfigError, match="is not given at this step; give both runs"):
        tripod.run(run_study(study, find_checkpoints([f"{suite[0][0].folder}@step{STEPS}"]), tmp_path))
    with pytest.raises(ConfigError, match="none of the runs is a branch"):
        tripod.run(run_study(study, find_checkpoints([f"{suite[0][1].folder}@step{STEPS}"]), tmp_path))


def test_a_group_that_no_item_has_and_two_branches_of_one_seed_are_refused(
    suite: list[tuple[Run, Run]], pairs_file: Path, found: dict[str, Finding], tmp_path: Path
) -> None:
    kept = found["age"].folder / "measured"
    pair = [f"{run.folder}@step{STEPS}" for run in suite[0]]
    wrong = GenderIntervention(tasks=("crows_pairs_english",), group="gendr", data=str(pairs_file))
    with pytest.raises(ConfigError, match="no item is of the group 'gendr'; there are age, gender"):
        tripod.run(run_study(wrong, find_checkpoints(pair), tmp_path, kept=kept))
    again = shutil.copytree(suite[0][0].folder, tmp_path / "again")
    study = GenderIntervention(tasks=("crows_pairs_english",), data=str(pairs_file))
    with pytest.raises(ConfigError, match="have one seed, 1; an interval over seeds is of one intervention"):
        tripod.run(run_study(study, find_checkpoints([*pair, f"{again}@step{STEPS}"]), tmp_path, kept=kept))
    assert not (tmp_path / "measured").exists()  # the group does not name a measurement: all of them were there
