"""The laws of the policy with a real model as executor: whatever is shared, forked or computed again, tokens are those of a run alone."""

from __future__ import annotations

from functools import cache

from hypothesis import settings

from tests.engine.conftest import make_model, plain_greedy
from tests.engine.policy.test_laws import STOP_IDS, PolicyLaws
from tripod.engine.assemble import assemble
from tripod.engine.engine_config import EngineConfig
from tripod.engine.policy.policy import Policy, Schedule
from tripod.engine.policy.request import Request
from tripod.models.language_model import LanguageModel
from tripod.sampling import GREEDY


@cache
def tiny_model() -> LanguageModel:
    return make_model()


@cache
def plainly(prompt_ids: tuple[int, ...], max_tokens: int) -> list[int]:
    token_ids = plain_greedy(tiny_model(), prompt_ids, max_tokens)
    end = next((index for index, token_id in enumerate(token_ids, 1) if token_id in STOP_IDS), max_tokens)
    return token_ids[:end]


class ModelExecutor:
    """The engine's runner, driven as the step loop drives it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        config = EngineConfig(kv_tokens=num_blocks * block_size, block_size=block_size, kernels="torch")
        self._runner = assemble(tiny_model(), config).runner

    def run(self, policy: Policy, schedule: Schedule) -> dict[Request, list[int]]:
        if not schedule:
            return {}
        self._runner.copy_blocks(policy.take_copies())
        result = self._runner.run(schedule)
        assert not result.failed
        return result.token_ids


class PolicyLawsOnTheModel(PolicyLaws):
    """The same rules and laws, but for drafts, which need an executor that checks them."""

    draft = None
    blocks_hold_the_tokens_that_are_computed = None

    def make_executor(self, num_blocks: int, block_size: int) -> ModelExecutor:  # type: ignore[override]
        return ModelExecutor(num_blocks, block_size)

    def request(self, *arguments: object) -> Request:
        request = super().request(*arguments)  # type: ignore[arg-type]
        request.sampling = GREEDY
        return request

    def answer_alone(self, request: Request) -> list[int]:
        return plainly(request.prompt_ids, request.max_tokens)


TestPolicyLawsOnTheModel = PolicyLawsOnTheModel.TestCase
TestPolicyLawsOnTheModel.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
