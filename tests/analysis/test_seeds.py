from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tripod
from tests.engine.tiny_models import tiny_model
from tests.evaluation.tasks.conftest import CONFIG
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.seeds import BETWEEN, SCORE, SELF, Seeds, outlier_runs
from tripod.analysis.study import Finding, run_study
from tripod.errors import ConfigError
from tripod.evaluation.agreement import cohen_kappa
from tripod.models.save import save_checkpoint
from tripod.text.byte_level import write_byte_tokenizer


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Finding:
    """Five runs of two checkpoints: of four the last ones are nearly the same model, of the fifth it is another."""
    folder = tmp_path_factory.mktemp("runs")
    for run in range(5):
        for step in (1, 2):
            seed = 77 if step == 2 and run < 4 else 10 * run + step
            model = tiny_model(CONFIG, seed=seed)
            for parameter in model.parameters():
                parameter.mul_(1.0 + 0.001 * run)
            save_checkpoint(model, folder / f"seed{run}" / f"step{step}")
            write_byte_tokenizer(folder / f"seed{run}" / f"step{step}")
    study = Seeds(tasks=("winogrande",), limit=40, data=str(shared_data))
    checkpoints = find_checkpoints([str(folder / f"seed{run}") for run in range(5)])
    return tripod.run(run_study(study, checkpoints, tmp_path_factory.mktemp("out")))


def test_a_checkpoint_agrees_with_itself_and_seeds_with_each_other_by_kappa(found: Finding) -> None:
    table = found.table
    assert set(table.where(measure=SELF, step=2).column("value")) == {1.0}
    assert max(table.where(measure=SELF, step=1).numbers("value")) < 0.9
    between = table.where(measure=BETWEEN, step=2)
    assert between.column("run") == ["seed1", "seed2", "seed3", "seed4"]
    assert min(between.numbers("value")[:3]) > 0.9 > 0.6 > between.numbers("value")[3]
    assert len(table.where(measure=SCORE)) == 10


def test_the_seed_that_is_another_model_is_the_outlier(found: Finding) -> None:
    assert {row["run"] for row in found.table if row["is_outlier"]} == {"seed4"}


def test_runs_that_cannot_be_compared_are_refused_before_they_are_asked(
    found: Finding, trained_series: Path, copied_series: Path, tmp_path: Path
) -> None:
    other = copied_series.rename(copied_series.with_name("other"))
    for addresses, message in (
        ([trained_series], "there is one run, run; give runs of several seeds"),
        ([f"{trained_series}@step8", f"{other}@step16"], "the runs run, other have no step in common"),
    ):
        with pytest.raises(ConfigError, match=message):
            tripod.run(run_study(Seeds(tasks=("winogrande",), data="nosuch"), find_checkpoints([*map(str, addresses)]), tmp_path))


def test_of_independent_seeds_none_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    answers = {f"seed{seed}": {str(item): float(rng.integers(2)) for item in range(200)} for seed in range(10)}
    assert outlier_runs(answers) == set()
    assert abs(cohen_kappa(list(answers["seed0"].values()), list(answers["seed1"].values()))) < 0.2
