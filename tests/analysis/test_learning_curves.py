from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

import tripod
from tests.engine.tiny_models import tiny_model
from tests.evaluation.tasks.conftest import CONFIG
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.learning_curves import LearningCurves, draw_curves
from tripod.analysis.study import run_study
from tripod.analysis.task_scores import TaskScore, score_checkpoints
from tripod.errors import ConfigError
from tripod.evaluation.table import Table
from tripod.models.save import save_checkpoint
from tripod.text.byte_level import write_byte_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves") / "small"
    for step in (0, 4):
        save_checkpoint(tiny_model(CONFIG, seed=step), folder / f"step{step}")
        write_byte_tokenizer(folder / f"step{step}")
    return folder


def test_a_curve_has_a_row_for_each_checkpoint_task_and_metric(run: Path, shared_data: Path, tmp_path: Path) -> None:
    study = LearningCurves(tasks=("piqa", "lambada_openai"), limit=5, data=str(shared_data))
    table = tripod.run(run_study(study, find_checkpoints([str(run)]), tmp_path)).table
    assert [(row["step"], row["task"], row["metric"]) for row in table] == [
        (step, task, metric)
        for step in (0, 4)
        for task, metric in (("piqa", "acc"), ("piqa", "acc_norm"), ("lambada_openai", "perplexity"), ("lambada_openai", "acc"))
    ]
    assert set(table.column("num_items")) == {5}
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


def test_of_three_seeds_the_median_and_the_quartiles_are_drawn() -> None:
    values = {1: (0.2, 0.3, 0.7), 10: (0.5, 0.1, 0.4)}
    rows = [
        {"model": f"seed{seed}", "size": 1000, "step": step, "task": "piqa", "metric": "acc", "value": value, "stderr": 0.1}
        for step, of_step in values.items()
        for seed, value in enumerate(of_step)
    ]
    figure = Figure()
    draw_curves(Table.of(rows), figure)
    axes = figure.axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.3, 0.4]
    [band] = axes.collections
    corners = {(float(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(1.0, 0.25), (1.0, 0.5), (10.0, 0.25), (10.0, 0.45)}


def test_tasks_are_kept_apart_so_that_one_can_be_added(run: Path, shared_data: Path, tmp_path: Path) -> None:
    checkpoints = find_checkpoints([str(run)])
    piqa, copa = (TaskScore(task=task, limit=4, data=str(shared_data)) for task in ("piqa", "copa"))
    first = tripod.run(score_checkpoints([piqa], checkpoints, kept=tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    both = tripod.run(score_checkpoints([piqa, copa], checkpoints, kept=tmp_path))
    assert both.where(task="piqa").column("value") == first.column("value")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(tmp_path.iterdir())) == 4


def test_what_a_task_of_lm_eval_reads_is_part_of_what_names_its_score(run: Path, tmp_path: Path) -> None:
    """Its task file, the code and the data beside it, and data elsewhere that the task file names."""
    pytest.importorskip("lm_eval")
    data, folder = tmp_path / "data.jsonl", tmp_path / "tasks"
    folder.mkdir()
    data.write_text("{}")
    (folder / "mine.yaml").write_text(f"task: mine\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n")
    (folder / "utils.py").write_text("")
    [checkpoint, _] = find_checkpoints([str(run)])
    score = TaskScore(task="lm-eval:mine", include=str(folder))
    found = [score.depends_on(checkpoint)]
    for file in (data, folder / "mine.yaml", folder / "utils.py"):
        file.write_text(file.read_text() + "# more\n")
        found.append(score.depends_on(checkpoint))
    assert len({str(one) for one in found}) == 4
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "utils.pyc").write_text("")  # as Python leaves it when the task was asked
    assert score.depends_on(checkpoint) == found[-1]
    with pytest.raises(ConfigError, match="holds no task file of lm-eval"):
        TaskScore(task="lm-eval:mine", include=str(run)).depends_on(checkpoint)


def test_a_file_that_is_not_there_is_named_before_a_model_is_opened(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the task piqa reads a file; give the folder with the data sets"):
        tripod.run(score_checkpoints([TaskScore(task="piqa")], find_checkpoints([str(run)])))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "book.txt").write_text("another file of this name")
    with pytest.raises(ConfigError, match=r"the text .*book\.txt is not there"):
        tripod.run(score_checkpoints([TaskScore(task=f"text:{tmp_path / 'book.txt'}")], find_checkpoints([str(run)])))
