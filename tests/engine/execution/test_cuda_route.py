"""The route for GPUs, on the CPU by Triton's interpreter: the same tokens as torch's route, padded and recorded steps included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.engine.conftest import make_model, plain_greedy
from tripod.engine.execution.kv_cache import KVCacheSpec
from tripod.engine.execution.route import TorchRoute
from tripod.engine.execution.runner import Runner
from tripod.engine.policy.policy import Policy, PolicyConfig
from tripod.engine.policy.request import Request
from tripod.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.language_model import LanguageModel
from tripod.models.llama import Llama
from tripod.models.moe import SparseMLP
from tripod.models.sparse_llama import SparseLlama, SparseLlamaConfig
from tripod.ops.moe_routing import RouterConfig
from tripod.ops.rope import RopeConfig
from tripod.sampling import GREEDY

pytest.importorskip("triton", reason="the kernels for GPUs need the package triton (pip install triton)")

from tripod.engine.execution.cuda_route import DecodeGraphs, TritonKVCache
from tripod.models.cuda_blocks import pack_cuda, why_not

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


def neox(*, is_parallel: bool) -> GPTNeoX:
    config = GPTNeoXConfig(
        vocab_size=259, hidden_size=24, intermediate_size=40, num_layers=1, num_heads=3, max_positions=256, rope=RopeConfig(rotary_dim=4),
        is_parallel=is_parallel, hidden_act="gelu" if is_parallel else "relu",
    )  # fmt: skip
    model = random_language_model(config, 3)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # biases and norms too: each must reach its place
        parameter.mul_(3.0).add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    assert isinstance(model, GPTNeoX)
    return model


def qwen3() -> Llama:
    """Two layers, one of them with a window."""
    model = make_model(windows=(None, 9, None))
    assert isinstance(model, Llama)
    model.config = replace(model.config, num_layers=2, windows=(None, 9))
    model.blocks = model.blocks[:2]
    return model


def sparse() -> SparseLlama:
    """Top-2 of four experts, a shared one behind a gate, and a dense layer between."""
    model = make_model()
    assert isinstance(model, Llama)
    config = SparseLlamaConfig(
        model_type="qwen2_moe", dense=replace(model.config, model_type="qwen2", qk_norm=False), expert_size=20, shared_size=28,
        router=RouterConfig(num_experts=4, top_k=2), has_shared_gate=True, dense_layers=(1,),
    )  # fmt: skip
    found = random_language_model(config, 5)
    for parameter in found.parameters():
        parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    assert isinstance(found, SparseLlama)
    return found


PACKED: dict[str, Callable[[], tuple[LanguageModel, LanguageModel]]] = {  # the model, and what runs
    "attention only": lambda: (make_model(), make_model()),
    "grouped heads, QK-norm, a window": lambda: (model := qwen3(), pack_cuda(model)),
    "sparse and dense layers": lambda: (model := sparse(), pack_cuda(model)),
    "NeoX, parallel": lambda: (model := neox(is_parallel=True), pack_cuda(model)),
    "NeoX, one after the other": lambda: (model := neox(is_parallel=False), pack_cuda(model)),
}


@pytest.mark.parametrize("kind", PACKED)
def test_recorded_decodes_and_mixed_steps_give_the_tokens_of_the_plain_way(kind: str) -> None:
    model, packed = PACKED[kind]()
    recorder = Recorder()
    graphs = DecodeGraphs(packed, recorder)
    spec = KVCacheSpec.of(graphs, kv_tokens=512, block_size=16, dtype=model.dtype)
    limits = PolicyConfig(
        num_blocks=spec.num_blocks, block_size=16, max_context=256, max_batch_tokens=32, max_num_requests=8, max_num_waiting=8
    )
    route = TorchRoute(model, None, "", is_batch_invariant=False)
    policy, runner = Policy(limits), Runner(graphs, TritonKVCache(spec, torch.device("cpu"), 16), route)
    lengths = [7, 3, 4, 5]
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


def test_models_that_the_kernels_do_not_know_are_named() -> None:
    model = neox(is_parallel=True)
    assert why_not(model) is None
    model.config = replace(model.config, hidden_act="gelu_fast")
    assert why_not(model) is None
    llama = make_model()
    assert isinstance(llama, Llama)
    assert why_not(llama) is None
    llama.blocks[1].mlp = torch.nn.Identity()
    assert why_not(llama) == "its blocks hold Identity, not LlamaMLP or SparseMLP"
    joint = replace(make_model().config, qk_norm=True, is_qk_norm_joint=True)
    assert why_not(random_language_model(joint, 0)) == "it norms all heads at once, or clips queries, keys and values"
    chosen = sparse()
    assert why_not(chosen) is None
    mlp = chosen.blocks[0].mlp
    assert isinstance(mlp, SparseMLP)
    mlp.router.config = RouterConfig(num_experts=4, top_k=2, chooser="expert")
    assert why_not(chosen) == "its experts choose among the tokens of a step"
