"""The route for GPUs, on the CPU by Triton's interpreter: the same tokens as torch's route, padded and recorded steps included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.engine.conftest import plain_greedy
from tripod.engine.execution.kv_cache import KVCacheSpec
from tripod.engine.execution.route import TorchRoute
from tripod.engine.execution.runner import Runner
from tripod.engine.policy.policy import Policy, PolicyConfig
from tripod.engine.policy.request import Request
from tripod.models.language_model import LanguageModel
from tripod.sampling import GREEDY

pytest.importorskip("triton", reason="the kernels for GPUs need the package triton (pip install triton)")

from tripod.engine.execution.cuda_route import DecodeGraphs, TritonKVCache

PROMPTS = [list(b"alpha"), list(b"a longer prompt than the others, in two chunks"), list(b"b"), list(b"gamma delta")]


class Recorder:
    """Stands for CUDA's graphs: what was recorded is done again, on the same tensors."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        body()

        def replay() -> None:
            self.replays += 1
            body()

        return replay


def test_recorded_decodes_and_mixed_steps_give_the_tokens_of_the_plain_way(model: LanguageModel) -> None:
    recorder = Recorder()
    graphs = DecodeGraphs(model, recorder)
    spec = KVCacheSpec.of(graphs, kv_tokens=512, block_size=16, dtype=model.dtype)
    limits = PolicyConfig(
        num_blocks=spec.num_blocks, block_size=16, max_context=256, max_batch_tokens=32, max_num_requests=8, max_num_waiting=8
    )
    route = TorchRoute(model, None, "", is_batch_invariant=False)
    policy, runner = Policy(limits), Runner(graphs, TritonKVCache(spec, torch.device("cpu")), route)
    lengths = [12, 6, 7, 8]
    requests = [
        Request(id=str(i), prompt_ids=tuple(prompt), sampling=GREEDY, max_tokens=length)
        for i, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]
    for request in requests:
        policy.add(request, 0.0)
    while policy.has_work:
        schedule = policy.plan(0.0)
        result = runner.run(schedule)
        assert not result.failed, result.failed
        policy.commit(schedule, result.token_ids, 0.0)
    assert [request.output_ids for request in requests] == [
        plain_greedy(model, prompt, length) for prompt, length in zip(PROMPTS, lengths, strict=True)
    ]
    assert recorder.recordings == 3  # for 4, 2 and 1 requests: 3 are padded to 4
    assert recorder.replays > recorder.recordings
