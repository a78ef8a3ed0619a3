"""Our scores against lm-eval's own: its prompts, its Hugging Face backend, its client of a server, on one checkpoint and the same files.

lm-eval's backend is given a context that is one token shorter: it never feeds the last token of a continuation, the engine does, so what is
too long is cut at the same place.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import tripod
from tests.evaluation.tasks.conftest import CONTEXT
from tests.serving.live_server import live_server
from tripod.engine.engine import Engine
from tripod.errors import ConfigError
from tripod.evaluation.tasks.catalogue import TASKS
from tripod.evaluation.tasks.lm_eval_model import evaluate_with_lm_eval, score_lm_eval_task
from tripod.evaluation.tasks.open_answer import plain_wikitext
from tripod.evaluation.tasks.question import Likelihood
from tripod.evaluation.tasks.scoring import Asking, TaskScores, score_task
from tripod.serving.app import build_app

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

LIMIT = 10
SHORTER = CONTEXT - 1
# Ours, lm-eval's file of the task, and the split that it scores.
LM_EVAL: Mapping[str, tuple[str, str]] = {
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "arc_easy": ("arc/arc_easy.yaml", "validation"),
    "sciq": ("sciq/sciq.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "logiqa": ("logiqa/logiqa.yaml", "validation"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "validation"),
    "arithmetic_2da": ("arithmetic/arithmetic_2da.yaml", "validation"),
    "crows_pairs_english": ("crows_pairs/crows_pairs_english.yaml", "test"),
}
METRIC_NAMES = {"acc": "acc", "acc_norm": "acc_norm", "perplexity": "perplexity", "pct_stereotype": "pct_stereotype",
                "likelihood_diff": "likelihood_diff"}  # fmt: skip


def _rows(task: str, data: Path) -> list[dict[str, Any]]:
    """The first questions of a task in the form that the hub's data sets have."""
    path = TASKS[task].path(data)
    if task == "crows_pairs_english":
        with path.open(encoding="utf-8", newline="") as stream:
            return [{name: row[name] for name in ("sent_more", "sent_less", "bias_type")} for row in csv.DictReader(stream)][:LIMIT]
    if task == "logiqa":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [
            {
                "label": lines[at + 1],
                "context": lines[at + 2],
                "question": lines[at + 3],
                "options": [line[2:].strip() for line in lines[at + 4 : at + 8]],
            }
            for at in range(0, 8 * LIMIT, 8)
        ]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:LIMIT]]
    if task == "piqa":
        labels = path.with_name("valid-labels.lst").read_text().split()
        rows = [{**row, "label": int(label)} for row, label in zip(rows, labels, strict=False)]
    return rows


@pytest.fixture(scope="module")
def task_files(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks for lm-eval: its own prompts and metrics, over local files."""
    import lm_eval

    own = Path(lm_eval.__file__).parent / "tasks"
    folder = tmp_path_factory.mktemp("lm-eval-tasks")
    for name, (file, split) in LM_EVAL.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in _rows(name, shared_data)), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(
            f"include: {own / file}\ntask: local_{name}\ntag: local\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    {split}: {data}\ntraining_split: null\nvalidation_split: null\ntest_split: null\n"
            f"{split}_split: {split}\n"
        )
    return folder


@pytest.fixture(scope="module")
def evaluate(task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """lm-eval on all the local tasks with some model."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf-datasets"))
        manager = TaskManager(include_path=str(task_files), include_defaults=False)

        def run(model: Any, arguments: dict[str, Any] | None = None, names: tuple[str, ...] = tuple(LM_EVAL)) -> dict[str, Any]:
            tasks = [f"local_{name}" for name in names]
            found: dict[str, Any] = lm_eval.simple_evaluate(
                model=model, model_args=arguments, tasks=tasks, task_manager=manager, bootstrap_iters=100
            )
            return found

        yield run


@pytest.fixture(scope="module")
def by_transformers(evaluate: Callable[..., dict[str, Any]], checkpoint: Path) -> dict[str, Any]:
    return evaluate("hf", {"pretrained": str(checkpoint), "dtype": "float32", "device": "cpu", "batch_size": 4, "max_length": SHORTER})


@pytest.fixture(scope="module")
def ours(engine: Engine, shared_data: Path) -> dict[str, TaskScores]:
    async def score() -> dict[str, TaskScores]:
        return {name: await score_task(engine, TASKS[name], shared_data, Asking(limit=LIMIT)) for name in LM_EVAL}

    return tripod.run(score())


def _likelihoods(found: dict[str, Any], name: str) -> list[list[tuple[float, bool]]]:
    """Of each question, in order, those of its asks."""
    samples = sorted(found["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"])
    return [[(float(reply[0][0]), str(reply[0][1]) == "True") for reply in sample["resps"]] for sample in samples]


@pytest.mark.parametrize("name", LM_EVAL)
def test_each_log_likelihood_is_that_of_lm_eval_with_transformers(
    name: str, ours: dict[str, TaskScores], by_transformers: dict[str, Any]
) -> None:
    expected = _likelihoods(by_transformers, name)
    found = [[(reply.logprob, reply.is_greedy) for reply in replies if isinstance(reply, Likelihood)] for replies in ours[name].replies]
    assert len(found) == len(expected) == LIMIT
    assert [len(replies) for replies in found] == [len(replies) for replies in expected]
    for own, other in zip(chain(*found), chain(*expected), strict=True):
        assert own[0] == pytest.approx(other[0], abs=1e-3)
        assert own[1] == other[1]


@pytest.mark.parametrize("name", LM_EVAL)
def test_each_metric_is_that_of_lm_eval(name: str, ours: dict[str, TaskScores], by_transformers: dict[str, Any]) -> None:
    expected = by_transformers["results"][f"local_{name}"]
    rows = [row for row in ours[name].rows() if row["task"] == name]
    assert {row["metric"] for row in rows} <= set(METRIC_NAMES)
    for row in rows:
        metric = METRIC_NAMES[str(row["metric"])]
        exact = metric in ("acc", "acc_norm", "pct_stereotype")
        assert row["value"] == (expected[f"{metric},none"] if exact else pytest.approx(expected[f"{metric},none"], rel=1e-4))
        if exact:  # of others lm-eval draws a bootstrap, or has none
            assert row["stderr"] == pytest.approx(expected[f"{metric}_stderr,none"], rel=1e-9)


def test_the_perplexity_s_standard_error_is_near_that_of_a_bootstrap(ours: dict[str, TaskScores]) -> None:
    import numpy as np

    scores = ours["lambada_openai"]
    logprobs = np.array([one["logprob"] for one in scores.measures])
    draws = np.random.default_rng(0).integers(LIMIT, size=(20_000, LIMIT))
    [row] = [row for row in scores.rows() if row["metric"] == "perplexity"]
    log_error = row["stderr"] / row["value"]  # type: ignore[operator]
    assert log_error == pytest.approx(float(logprobs[draws].mean(1).std()), rel=0.08)  # the bootstrap's is sqrt(9 / 10) of it


def test_the_engine_is_a_model_of_lm_eval(
    engine: Engine, task_files: Path, by_transformers: dict[str, Any], evaluate: Callable[..., dict[str, Any]]
) -> None:
    found = tripod.run(evaluate_with_lm_eval(engine, [f"local_{name}" for name in LM_EVAL], include=task_files, bootstrap_iters=100))
    for name in LM_EVAL:
        own, other = _likelihoods(found, name), _likelihoods(by_transformers, name)
        assert [*chain(*own)] == [(pytest.approx(logprob, abs=1e-3), is_greedy) for logprob, is_greedy in chain(*other)]


def test_a_task_of_lm_eval_gives_rows_like_our_own(
    engine: Engine, task_files: Path, ours: dict[str, TaskScores], evaluate: Callable[..., dict[str, Any]]
) -> None:
    rows = tripod.run(score_lm_eval_task(engine, "local_piqa", include=task_files))
    [acc] = [row for row in rows if row["metric"] == "acc"]
    [own] = [row for row in ours["piqa"].rows() if row["metric"] == "acc"]
    assert acc["task"] == "lm-eval:local_piqa"
    assert (acc["value"], acc["num_items"]) == (own["value"], LIMIT)
    assert [row["metric"] for row in rows] == ["acc", "acc_norm"]
    with_examples = tripod.run(score_lm_eval_task(engine, "local_piqa", limit=2, shots=1, include=task_files))
    assert {row["shots"] for row in with_examples} == {1}
    with pytest.raises(ConfigError, match="lm-eval cannot run the task no_such_task"):
        tripod.run(score_lm_eval_task(engine, "no_such_task", include=task_files))


def test_wikitext_is_spelled_as_lm_eval_spells_it(shared_data: Path) -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    text = (shared_data / "text-wikitext2" / "test.txt").read_text(encoding="utf-8")[:200_000]
    text += " ( a ) [ b ] { c } \" d \" ' e ' 5 \u00b0 N , the dogs ' tail : ; ! ? x 's\n = = = y = = = \n"
    assert plain_wikitext(text) == wikitext_detokenizer({"page": text}) != text


def test_lm_eval_scores_our_server(
    engine: Engine, checkpoint: Path, by_transformers: dict[str, Any], evaluate: Callable[..., dict[str, Any]]
) -> None:
    names = ("lambada_openai", "piqa", "arc_easy", "openbookqa", "winogrande")  # all fit: this client cuts two tokens earlier
    with live_server(build_app(engine)) as server:
        arguments = {
            "model": engine.name,
            "base_url": f"{server.url}/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(checkpoint),
            "num_concurrent": 4,
            "max_length": SHORTER,
        }
        found = evaluate("local-completions", arguments, names)
    for name in names:
        own, other = _likelihoods(found, name), _likelihoods(by_transformers, name)
        assert [*chain(*own)] == [(pytest.approx(logprob, abs=1e-3), is_greedy) for logprob, is_greedy in chain(*other)]
        for metric, value in by_transformers["results"][f"local_{name}"].items():
            if metric.startswith("acc") and "stderr" not in metric:
                assert found["results"][f"local_{name}"][metric] == value


def test_a_long_text_is_scored_as_lm_eval_scores_it(engine: Engine, checkpoint: Path, shared_data: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from tripod.evaluation.tasks.asking import answer
    from tripod.evaluation.tasks.question import WholeText

    text = (shared_data / "text-wikitext2" / "test.txt").read_text(encoding="utf-8")[:3000]
    model = HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", max_length=SHORTER)
    [expected] = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    [reply] = tripod.run(answer(engine, [WholeText(text)]))
    assert isinstance(reply, Likelihood)
    assert reply.num_tokens == len(text.encode())
    assert reply.logprob == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(expected)
