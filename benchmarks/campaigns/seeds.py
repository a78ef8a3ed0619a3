"""Runs of several seeds and two sizes on books, an intervention in three of them, and the studies that look at them.

    python -m benchmarks.campaigns seeds [--data FOLDER] [--work FOLDER] [--steps 400] [--questions 200] [--tables FOLDER]

Five seeds of tiny-s and two of tiny-m are trained on public-domain books; the seeds 1 to 3 of tiny-s branch at half of their steps into
a run that reads "she" for "he" and a control that does not. The promises: the loss falls with size, and the law that is fitted to it says
so (alpha above 0); two seeds of one size agree with each other at the end more than a model agrees with its own beginning; over seeds, the
branches rate the masculine sentence of a pair of CrowS-Pairs lower than their controls do, by an interval that leaves out zero; the share
of tokens that the report says were swapped is what a count over the rows finds. The pairs of the third promise are those that differ in
pronouns. In about half of them the stereotype is of a woman, so the study's own margin, of the stereotyping sentence, may stay.

Tables and pictures are left in --tables; those in docs/studies/ were made so. --work keeps the runs, and a second call goes on with them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import tripod
from benchmarks.campaigns.promises import keep_and_tell
from benchmarks.setting import setting
from benchmarks.shared_data import DATA
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.gender_intervention import GenderIntervention
from tripod.analysis.learning_curves import LearningCurves
from tripod.analysis.scaling_laws import ScalingLaws
from tripod.analysis.seeds import BETWEEN, SELF, Seeds
from tripod.analysis.study import Study, run_study
from tripod.analysis.training_map_study import TrainingMaps
from tripod.evaluation.table import Table
from tripod.training.branch import begin_branch, read_branch, report_changes
from tripod.training.loop import train
from tripod.training.prepare import is_prepared, prepare_data
from tripod.training.recipe import Recipe
from tripod.training.recipe_file import read_recipe
from tripod.training.run import Run

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
RUNS = {**{f"tiny-s-seed{seed}": ("tiny-s", seed) for seed in range(1, 6)}, **{f"tiny-m-seed{seed}": ("tiny-m", seed) for seed in (1, 2)}}
BRANCHED = ("tiny-s-seed1", "tiny-s-seed2", "tiny-s-seed3")
WORDS = {"he": "she", "him": "her", "his": "her", "himself": "herself"}
TASKS = ("piqa", "winogrande", "sciq")
_LAST_SHARE = 0.5  # of the steps, behind the branch


def recipe_of(name: str, data: Path, work: Path, steps: int) -> Recipe:
    preset, seed = RUNS[name]
    changes = {
        "preset": preset,
        "run": str(work / "runs" / name),
        "num_steps": str(steps),
        "seeds": json.dumps({"initialization": seed, "order": seed, "dropout": seed}),
        "data.source.inputs": json.dumps([str(data / "text-classic-books")]),
        "data.prefixes": json.dumps([str(work / "data" / "books")]),
        "data.tokenizer": str(work / "data" / "tokenizer"),
        "data.maps_folder": str(work / "data" / "maps"),
        "validation": json.dumps({"every": steps // 8, "num_batches": 8}),
        "checkpoints": json.dumps({"log_until": 16, "every": steps // 8}),
    }
    return read_recipe(RECIPE, [f"{path}={value}" for path, value in changes.items()])


def train_all(data: Path, work: Path, steps: int) -> list[tuple[Run, Run]]:
    """Every run, going on with what is unfinished; the branches with their controls."""
    for name in RUNS:
        recipe = recipe_of(name, data, work, steps)
        assert recipe.data.source is not None
        if not is_prepared(recipe.data):
            prepare_data(recipe.data, [Path(one) for one in recipe.data.source.inputs])
        print(f"train {name}", flush=True)
        train(recipe, resume=True)
    (work / "she.yaml").write_text(f"interventions: [{{kind: swap, words: {json.dumps(WORDS)}}}]\n")
    at = round(steps * (1 - _LAST_SHARE))
    pairs = []
    for name in BRANCHED:
        branch = read_branch(f"{work / 'runs' / name}@step{at}", work / "she.yaml")
        for one in (branch.branch, branch.control):
            if not Path(one.run).is_dir():
                begin_branch(one, branch.parent, branch.step)
        print(f"branch {name}", flush=True)
        pairs.append((train(branch.branch, resume=True).run, train(branch.control, resume=True).run))
    return pairs


def swapped_share(branch: Run, control: Run) -> tuple[float, float]:
    """What the report says, and what a comparison of all rows with the control's finds: tokens that the row did not have before."""
    [report] = report_changes(branch)
    ours, theirs = branch.order().rows, control.order().rows
    first = control.recipe.branch
    assert first is not None
    begin = int(first.parent.rpartition("@step")[2]) * branch.recipe.batch.rows
    num_changed = num_tokens = 0
    for row in range(begin, branch.recipe.num_steps * branch.recipe.batch.rows):
        before, now = theirs.row(row).tolist(), ours.row(row).tolist()
        num_tokens += len(now)
        blocks = SequenceMatcher(None, before, now, autojunk=False).get_matching_blocks() if before != now else ()
        num_changed += 0 if before == now else len(now) - sum(block.size for block in blocks)
    return report.share_of_tokens, num_changed / num_tokens


def study(one: Study, addresses: Sequence[str], folder: Path, tables: Path, *, steps: Sequence[int] | None = None) -> Table:
    print(f"study {one.name}", flush=True)
    table = tripod.run(run_study(one, find_checkpoints(addresses, steps=steps), folder / one.name)).table
    tables.mkdir(parents=True, exist_ok=True)
    for suffix in (".parquet", ".png"):
        shutil.copy(folder / one.name / f"{'table' if suffix == '.parquet' else 'plot'}{suffix}", tables / f"{one.name}{suffix}")
    return table


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if all that was promised holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns seeds", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, help="a temporary folder if absent")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--questions", type=int, default=200, help="of each task; CrowS-Pairs is asked whole")
    parser.add_argument("--tables", type=Path, help="where tables and pictures are left; --work if absent")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tripod-seeds-") as name:
        work = options.work or Path(name)
        tables = options.tables or work / "tables"
        pairs = train_all(options.data, work, options.steps)
        runs = [str(work / "runs" / run) for run in RUNS]
        small = [run for run in runs if "tiny-s" in run]
        studies, data = work / "studies", str(options.data)
        study(LearningCurves(tasks=TASKS, limit=options.questions, data=data), runs, studies, tables)
        agreement = study(Seeds(tasks=TASKS, limit=options.questions, data=data), small, studies, tables)
        study(TrainingMaps(), small, studies, tables)
        law = study(ScalingLaws(from_step=options.steps // 4), runs, studies, tables)
        gender = GenderIntervention(tasks=("crows_pairs_english", "winobias"), group="gender", data=data)
        both = [str(run.folder) for pair in pairs for run in pair]
        changed = study(gender, both, studies, tables, steps=[options.steps])
        shares = [swapped_share(branch, control) for branch, control in pairs]
    margins = {
        measure: dict(changed.where(task="crows_pairs_english", measure=measure, seed="all").rows[0])
        for measure in ("margin", "masculine_margin")
    }
    [alpha] = law.where(kind="parameter", parameter="alpha").numbers("value")
    first, last = min(agreement.numbers("step")), max(agreement.numbers("step"))
    wanted = ((BETWEEN, int(last)), (SELF, int(first)))
    between, own = (mean(agreement.where(measure=measure, step=step).numbers("value")) for measure, step in wanted)
    points = law.where(kind="point")
    ends = {
        size: mean([float(str(row["loss"])) for row in points if str(row["series"]).startswith(size) and row["step"] == options.steps])
        for size in ("tiny-s", "tiny-m")
    }
    promises = {
        "the larger model has the smaller loss": ends["tiny-m"] < ends["tiny-s"],
        "the law falls with size": alpha > 0,
        "seeds agree more at the end than a model with its own beginning": between > own,
        "the masculine sentence became less likely in the branches": float(str(margins["masculine_margin"]["high"])) < 0,
        "the swapped share is that of the count": all(abs(said - counted) < 1e-4 for said, counted in shares),
    }
    results: dict[str, Any] = {
        "setting": setting("benchmarks.campaigns", ("torch", "scipy", "matplotlib")),
        "wall_s": time.monotonic() - began_s,
        "loss": ends,
        "alpha": alpha,
        "agreement_between_seeds_at_the_end": between,
        "agreement_with_itself_at_the_beginning": own,
        "margins_over_seeds": margins,
        "swapped_share": [{"report": said, "count": counted} for said, counted in shares],
    }
    return keep_and_tell(options.out / "seeds.json", results, promises)
