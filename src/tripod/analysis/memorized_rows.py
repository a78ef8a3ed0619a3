"""How much of a training row a checkpoint continues by heart: its first tokens as a prompt, and the greedy continuation beside the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tripod.evaluation.tasks.asking import for_each
from tripod.sampling import SamplingParams
from tripod.training.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from tripod.engine.engine import Engine
    from tripod.engine.engine_config import EngineConfig

REQUESTS, TOKENS = 128, 4096  # of a step: many short rows at once, yet no more logits than memory that is kept for the next step
WORKERS_PER_PLACE = 2  # so that a request waits whenever another ends


def bulk_config(num_tokens: int) -> EngineConfig:
    """An engine for many requests of this many tokens, of which nobody waits for the first one.

    The rows of a run rarely share a beginning, so none is kept.
    """
    from tripod.engine.engine_config import EngineConfig

    return EngineConfig(
        max_num_requests=REQUESTS,
        max_batch_tokens=TOKENS,
        chunk_beside_decodes=None,
        prefix_cache=False,
        kv_tokens=REQUESTS * (num_tokens + 16),
    )


async def continuations(engine: Engine, prompts: NDArray[np.int64], length: int, *, progress: Progress = no_progress) -> NDArray[np.int64]:
    """The greedy continuation of each prompt.

    Args:
        engine: of the checkpoint.
        prompts: [n, k] token ids.
        length: tokens to generate; an end of text is a token as any other.
        progress: told the stage "rows".

    Returns:
        [n, length]

    Raises:
        ContextLengthError: prompt and continuation do not fit the model.
    """
    sampling = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
    found = np.zeros((len(prompts), length), np.int64)

    async def one(number: int) -> None:
        found[number] = (await engine.generate(prompts[number].tolist(), sampling)).token_ids

    at_once = WORKERS_PER_PLACE * engine.config.max_num_requests
    await for_each(range(len(prompts)), one, at_once=at_once, progress=progress, stage="rows")
    return found
