"""Planted truth: rows that repeat are known by heart, more the more often; in a control without repeats none is."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tripod
from tests.analysis.planted import NUM_STEPS, ROWS, PlantedRun
from tests.engine.tiny_models import tiny_model
from tests.evaluation.tasks.conftest import CONFIG
from tripod.analysis.checkpoints import Checkpoint, find_checkpoints
from tripod.analysis.memorization import Memorization, by_powers
from tripod.analysis.predictable_memorization import PredictableMemorization, Prediction
from tripod.analysis.shares import wilson
from tripod.analysis.study import Finding, run_study
from tripod.errors import ConfigError
from tripod.evaluation.table import Table
from tripod.models.save import save_checkpoint
from tripod.training.ngrams.provenance import Provenance

HALF = NUM_STEPS // 2


def _study(study: Memorization, run: PlantedRun, out: Path, *, steps: tuple[int, ...] | None = None, kept: Path | None = None) -> Finding:
    return tripod.run(run_study(study, find_checkpoints([str(run.run.folder)], steps=steps), out, kept=kept))


@pytest.fixture(scope="module")
def repeated(repeated_run: PlantedRun, tmp_path_factory: pytest.TempPathFactory) -> Finding:
    return _study(Memorization(bin=64), repeated_run, tmp_path_factory.mktemp("repeated"))


@pytest.fixture(scope="module")
def control(control_run: PlantedRun, tmp_path_factory: pytest.TempPathFactory) -> Finding:
    return _study(Memorization(bin=64), control_run, tmp_path_factory.mktemp("control"), steps=(NUM_STEPS,))


def _by_times(table: Table) -> dict[int, tuple[float, int]]:
    rows = table.where(statistic="memorized of rows read x times", step=NUM_STEPS)
    return {int(row["x"] or 0): (float(row["value"] or 0), int(row["count"] or 0)) for row in rows}


def test_rows_that_repeat_are_memorized_and_others_are_not(repeated: Finding, control: Finding) -> None:
    shares = _by_times(repeated.table)
    often = [share for times, (share, _) in shares.items() if times >= 32]
    rarely = [share for times, (share, _) in shares.items() if times <= 4]
    assert min(often) > 0.5
    assert max(rarely) < 0.05
    assert list(_by_times(control.table)) == [1]
    assert _by_times(control.table)[1][0] == 0.0


def test_rows_are_counted_as_often_as_they_were_planted(repeated_run: PlantedRun, repeated: Finding) -> None:
    """Against the corpus: the run reads nearly all of it once, so a text stands in the rows as often as it was written, or a bit less."""
    order = repeated_run.run.order()
    texts = [bytes(order.rows.row(row)[:63].tolist()).decode() for row in range(NUM_STEPS * ROWS)]
    read = Counter(texts)
    assert all(read[text] <= repeated_run.texts[text] for text in read)
    expected = Counter(1 << (read[text].bit_length() - 1) for text in texts)  # rows in each class of powers of two
    assert {times: count for times, (_, count) in _by_times(repeated.table).items()} == expected


def test_times_are_those_before_the_checkpoint(repeated_run: PlantedRun, repeated: Finding) -> None:
    order = repeated_run.run.order()
    texts = [bytes(order.rows.row(row)[:63].tolist()) for row in range(HALF * ROWS)]
    read = Counter(texts)
    expected = Counter(1 << (read[text].bit_length() - 1) for text in texts)
    found = repeated.table.where(statistic="memorized of rows read x times", step=HALF)
    assert {row["x"]: row["count"] for row in found} == expected


def test_the_rows_that_are_continued_are_those_asked_for(repeated_run: PlantedRun) -> None:
    [half] = find_checkpoints([str(repeated_run.run.folder)], steps=[HALF])
    assert Memorization().rows_of(half) == range(HALF * ROWS)
    assert Memorization(unseen=True).rows_of(half) == range(NUM_STEPS * ROWS)
    assert Memorization(first_row=10, num_rows=5).rows_of(half) == range(10, 15)
    assert len(Memorization(first_row=HALF * ROWS).rows_of(half)) == 0


def test_a_row_is_known_by_heart_if_all_of_it_is_right(trained_series: Path) -> None:
    [checkpoint] = find_checkpoints([f"{trained_series}@step64"])
    measured = Table.of({"row": row, "matched": matched, "times": 1} for row, matched in enumerate((32, 31, 0, 32)))
    table = Memorization().conclude([(checkpoint, measured)])
    assert table.where(statistic="memorized").column("value") == [0.5]
    [score] = table.where(statistic="score")
    mean, error = 95 / 128, 1.96 * np.std([1, 31 / 32, 0, 1]) / 2
    assert (score["value"], score["low"], score["high"]) == pytest.approx((mean, mean - error, mean + error))


def test_the_largest_model_at_its_last_step_is_foretold(trained_series: Path, tmp_path: Path) -> None:
    small = find_checkpoints([str(trained_series)], steps=[8, 64])
    save_checkpoint(tiny_model(CONFIG), tmp_path / "large" / "step16")
    [large] = find_checkpoints([str(tmp_path / "large")])
    assert large.num_parameters > small[0].num_parameters
    tables = [Table.of({"row": row, "matched": 32} for row in rows) for rows in ((3, 4), (1, 2, 3), (2, 3, 4))]
    found = PredictableMemorization().conclude([*zip((*small, large), tables, strict=True)])
    assert {(row["target"], row["target_step"]) for row in found.where(statistic="tp")} == {("large", 16)}
    assert {row["kind"] for row in found.where(statistic="tp")} == {"smaller model, earlier step", "smaller model, later step"}
    assert {row["count"] for row in found.where(statistic="tp")} == {1}  # row 3 alone was read by all


def test_the_tracer_finds_each_planted_text_in_exactly_its_steps(repeated_run: PlantedRun, control_run: PlantedRun) -> None:
    order = repeated_run.run.order()
    provenance = Provenance.open(f"{repeated_run.run.folder}@step{HALF}")
    elsewhere = Provenance.open(f"{control_run.run.folder}@step{NUM_STEPS}")
    steps: dict[str, list[int]] = {}
    for step in range(NUM_STEPS):
        for row in order.batch_at(step):
            steps.setdefault(bytes(row[:63].tolist()).decode(), []).append(step)
    for text, of_text in list(steps.items())[::3]:
        longest = provenance.trace(text.encode(), min_tokens=20).longest
        before = [step for step in of_text if step < HALF]
        if before:
            assert longest is not None
            assert (longest.text, longest.seen.steps.tolist()) == (text, before)
            assert longest.num_later == len(of_text) - len(before)
        else:
            assert longest is None
        if text not in control_run.texts:
            assert elsewhere.trace(text.encode(), min_tokens=20).spans == ()


def test_the_table_is_that_of_the_rows(repeated: Finding, repeated_run: PlantedRun) -> None:
    """Half of the run has read half of the rows; the score is the mean of what the rows give."""
    shares = {row["step"]: row for row in repeated.table.where(statistic="memorized")}
    assert [int(row["count"] or 0) for row in shares.values()] == [HALF * ROWS, NUM_STEPS * ROWS]
    for step in (HALF, NUM_STEPS):
        parts = repeated.table.where(statistic="rows with x tokens right", step=step)
        mean = sum(float(row["x"] or 0) * float(row["value"] or 0) for row in parts) / 32
        assert mean == pytest.approx(float(repeated.table.where(statistic="score", step=step).rows[0]["value"] or 0))
        assert float(parts.rows[-1]["value"] or 0) == shares[step]["value"]
    with (repeated.folder / "table.csv").open() as stream:
        assert {row["statistic"] for row in csv.DictReader(stream)} >= {"memorized", "score", "dispersion of bins", "memorized rows a bin"}
    assert (repeated.folder / "plot.png").stat().st_size > 20_000


def test_planted_rows_come_at_any_time_so_bins_are_no_more_clustered_than_chance(repeated: Finding) -> None:
    """The order is shuffled, so that what is memorised is spread over it."""
    [row] = repeated.table.where(statistic="p that bins are as clustered", step=NUM_STEPS)
    assert float(row["value"] or 0) > 0.01


def test_the_engine_continues_as_the_model_does_row_by_row(repeated_run: PlantedRun, repeated: Finding) -> None:
    """Against a loop that computes all logits of a row anew for each token."""
    import torch

    from tripod.models.load import load_language_model
    from tripod.ops.attention import causal_attention

    model = load_language_model(repeated_run.run.checkpoint(NUM_STEPS))
    [measured] = [
        Table.read(path).where(lambda row: int(row["row"] or 0) < 6)
        for path in (repeated.folder / "measured").glob("memorization-*.jsonl")
        if len(Table.read(path)) == NUM_STEPS * ROWS
    ]
    for row in measured:
        tokens = torch.from_numpy(repeated_run.run.order().rows.row(int(row["row"] or 0))[:64].astype(np.int64))
        said = tokens[:32]
        for _ in range(32):
            with torch.inference_mode():
                logits = model.logits(model.hidden(said[None], torch.arange(len(said))[None], causal_attention)[0, -1])
            said = torch.cat([said, logits.argmax()[None]])
        assert int((said[32:] == tokens[32:]).sum()) == row["matched"]


def test_an_earlier_checkpoint_foretells_some_and_what_it_knows_stays_known(
    repeated_run: PlantedRun, repeated: Finding, tmp_path: Path
) -> None:
    kept = repeated.folder / "measured"
    found = _study(PredictableMemorization(bin=64), repeated_run, tmp_path, kept=kept)
    assert found.num_measured == 0  # it measures what the other study did
    values = {row["statistic"]: (row["value"], row["count"]) for row in found.table}
    assert {row["kind"] for row in found.table} == {"earlier step"}
    assert values["tp"][1] == HALF * ROWS  # rows that both have read
    known = {
        path.name: {int(row["row"] or 0): row["matched"] == 32 for row in Table.read(path)} for path in kept.glob("memorization-*.jsonl")
    }
    _, early, late = sorted(known.values(), key=len)  # step 0 has read no row
    both = sum(early[row] and late[row] for row in early)
    assert both > 10  # at half of its steps, the run knows some of what repeats most
    assert values["tp"][0] == pytest.approx(both / len(early))
    assert values["recall"][0] == pytest.approx(both / sum(late[row] for row in early))
    assert float(values["correlation of scores"][0] or 0) > 0.3


def test_another_size_of_bins_needs_no_new_measurement(repeated_run: PlantedRun, repeated: Finding, tmp_path: Path) -> None:
    found = _study(Memorization(bin=32), repeated_run, tmp_path, kept=repeated.folder / "measured")
    assert found.num_measured == 0
    counts = {row["count"] for row in found.table.where(statistic="dispersion of bins", step=NUM_STEPS)}
    assert counts == {NUM_STEPS * ROWS // 32}


def test_a_predictor_is_called_what_it_is_beside_the_target(trained_series: Path, copied_series: Path) -> None:
    other = copied_series.rename(copied_series.with_name("other"))
    checkpoints = find_checkpoints([str(trained_series), f"{other}@step8", f"{other}@step64"], steps=[8, 64])
    table = Table.of([{"row": 0, "matched": 32}, {"row": 1, "matched": 3}])
    found = PredictableMemorization().conclude([(checkpoint, table) for checkpoint in checkpoints]).where(statistic="tp")
    kinds = {(row["model"], row["step"]): row["kind"] for row in found}
    assert kinds == {
        ("run", 8): "earlier step",
        ("other", 8): "other model of its size, earlier step",
        ("other", 64): "other model of its size",
    }


def test_rates_by_hand() -> None:
    flags = (np.array([1, 1, 0, 0, 1, 0, 0, 0], bool), np.array([1, 0, 1, 1, 1, 0, 0, 0], bool))
    prediction = Prediction.of(*flags)
    assert (prediction.tp, prediction.fp, prediction.fn, prediction.tn) == (2, 1, 2, 3)
    assert {name: (cases, of) for name, cases, of in prediction.rates()} == {
        "precision": (2, 3),
        "recall": (2, 4),
        "false positive rate": (1, 4),
        "false negative rate": (2, 4),
    }


def test_classes_are_powers_of_two() -> None:
    times = np.array([0, 1, 2, 3, 4, 7, 8, 64, 127])
    assert {lowest: times[members].tolist() for lowest, members in by_powers(times)} == {
        0: [0], 1: [1], 2: [2, 3], 4: [4, 7], 8: [8], 64: [64, 127],
    }  # fmt: skip


def test_an_interval_of_a_share_by_hand() -> None:
    """Wilson's interval of 3 in 10, from the formula by hand, and of none and all, which stays within 0 and 1."""
    assert wilson(3, 10) == pytest.approx((0.3, 0.1078, 0.6032), abs=1e-4)
    assert wilson(0, 20)[:2] == (0.0, 0.0)
    assert wilson(20, 20)[2] == 1.0


def test_what_cannot_be_studied_is_refused(repeated_run: PlantedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt=0"):
        Memorization(prompt=0)
    with pytest.raises(ConfigError, match="have 65 tokens; prompt and length together ask for 96"):
        _study(Memorization(prompt=64), repeated_run, tmp_path, steps=(NUM_STEPS,))
    with pytest.raises(ConfigError, match="is not a checkpoint of a training run"):
        Memorization().rows_of(Checkpoint("x", tmp_path))
    with pytest.raises(ConfigError, match="at least two checkpoints"):
        _study(PredictableMemorization(num_rows=4), repeated_run, tmp_path, steps=(NUM_STEPS,))
