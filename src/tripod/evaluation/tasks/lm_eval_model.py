"""Any task of lm-eval on our engine: the engine as a model of lm-eval's, in process.

Over HTTP, lm-eval's own `local-completions` talks to `tripod serve`; see docs/how-to/evaluate-models.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripod.errors import ConfigError, MissingExtraError
from tripod.evaluation.table import Row
from tripod.evaluation.tasks.asking import answer
from tripod.evaluation.tasks.question import Ask, Continuation, Generated, Generation, Likelihood, Reply, WholeText

if TYPE_CHECKING:
    from tripod.engine.engine import Engine

_DEFAULT_ANSWER_TOKENS = 256  # as lm-eval's own models


def lm_eval_model(engine: Engine, loop: asyncio.AbstractEventLoop) -> Any:
    """The engine as an `lm_eval.api.model.LM`.

    Args:
        engine: open as long as the model is used.
        loop: a running loop of another thread than the one that calls the model, because lm-eval waits for its answers.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise MissingExtraError("lm-eval", "lm-eval", "a task of lm-eval") from None

    class TripodLM(LM):  # type: ignore[misc]  # lm-eval has no types
        """Answers lm-eval's three kinds of requests."""

        @property
        def tokenizer_name(self) -> str:
            return engine.name.replace("/", "__")

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            replies = self._ask([Continuation(*request.args) for request in requests])
            return [(reply.logprob, reply.is_greedy) for reply in replies if isinstance(reply, Likelihood)]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            replies = self._ask([WholeText(request.args[0]) for request in requests])
            return [reply.logprob for reply in replies if isinstance(reply, Likelihood)]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            replies = self._ask([_generation(*request.args) for request in requests])
            return [reply.text for reply in replies if isinstance(reply, Generated)]

        def _ask(self, asks: Sequence[Ask]) -> list[Reply]:
            return asyncio.run_coroutine_threadsafe(answer(engine, asks), loop).result()

    return TripodLM()


def _generation(prompt: str, arguments: dict[str, Any]) -> Generation:
    """lm-eval's greedy requests.

    Raises:
        ConfigError: sampling is asked for, which tasks ask for seldom.
    """
    if arguments.get("do_sample") and arguments.get("temperature", 1.0) > 0:
        raise ConfigError("this task samples (do_sample: true); tasks are answered greedily here. Set its temperature to 0")
    until = arguments.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(stop for stop in until if stop)
    return Generation(prompt, stops, int(arguments.get("max_gen_toks") or arguments.get("max_new_tokens") or _DEFAULT_ANSWER_TOKENS))


async def evaluate_with_lm_eval(engine: Engine, tasks: Sequence[str], *, include: Path | None = None, **options: Any) -> dict[str, Any]:
    """lm-eval's `simple_evaluate` on the engine; what it returns is what its result files hold, with the samples.

    Args:
        engine: with the model.
        tasks: names that lm-eval knows.
        include: a folder of task files, which are known instead of lm-eval's own (to index those takes seconds).
        options: of `lm_eval.simple_evaluate`: limit, num_fewshot, bootstrap_iters, ...

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    model = lm_eval_model(engine, asyncio.get_running_loop())
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include), include_defaults=include is None)

    def evaluate() -> Any:
        return simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, **options)

    found: dict[str, Any] = await asyncio.to_thread(evaluate)
    return found


def lm_eval_version() -> str:
    """
    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    try:
        return metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        raise MissingExtraError("lm-eval", "lm-eval", "a task of lm-eval") from None


async def score_lm_eval_task(
    engine: Engine, task: str, *, limit: int | None = None, shots: int | None = None, seed: int = 1234, include: Path | None = None
) -> list[Row]:
    """A row a metric, as of our own tasks.

    Args:
        engine: with the model.
        task: a name that lm-eval knows.
        limit: of questions.
        shots: examples before each question; None: what the task says.
        seed: by which they are drawn.
        include: see `evaluate_with_lm_eval`.

    Raises:
        ConfigError: lm-eval does not know the task, or cannot run it.
        MissingExtraError: lm-eval is not installed.
    """
    from tripod.evaluation.results import results_of

    try:
        found = await evaluate_with_lm_eval(
            engine,
            [task],
            include=include,
            limit=limit,
            num_fewshot=shots,
            fewshot_random_seed=seed,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"lm-eval cannot run the task {task}: {error}; `lm-eval ls tasks` lists what it knows") from error
    num_items = found.get("n-samples") or {}
    return [
        {
            "task": f"lm-eval:{row['task']}",
            "shots": row["shots"],
            "metric": row["metric"],
            "filter": row["filter"],
            "value": row["value"],
            "stderr": row["stderr"],
            "num_items": (num_items.get(row["task"]) or {}).get("effective"),
        }
        for row in results_of({"results": found["results"], "n-shot": found.get("n-shot", {}), "config": {}}, "")
    ]
