"""One prompt on its way to a completion."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from tripod.engine.policy.prefix_cache import CacheMiss, Node
from tripod.messages import FinishReason
from tripod.sampling import SamplingParams

if TYPE_CHECKING:
    from tripod.engine.grammar.matcher import Matcher


class Stage(Enum):
    """Waiting -> running -> finished, and back to waiting if preempted."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One prompt on its way to a completion.

    The first group of fields is what was asked and never changes; the second is the state, and only `Policy` writes it.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int  # the answer's length at most; 0: only the prompt is computed
    seed: int = 0  # the sampler's draws are a pure function of (seed, index of the output token)
    stop_ids: frozenset[int] = frozenset()  # end-of-sequence and stop token ids that end this request
    score_from: int | None = None  # log-probabilities are wanted for the prompt's tokens from this index on
    priority: int = 0  # lower runs first, among the requests of one tenant
    tenant: str = ""  # who asks; tenants share the engine fairly. "": nobody in particular
    deadline_s: float | None = None  # of the caller's clock; whoever has not ended by then is ended by expire

    matcher: Matcher | None = None  # of the grammar of `sampling`; moved on by every token, before the commit

    order: tuple[float, int] = (0.0, -1)  # by which requests run, give way and leave a tenant's queue; written by add
    stage: Stage = Stage.WAITING
    block_ids: list[int] = field(default_factory=list)  # its blocks of the KV pool, some shared with others; empty unless RUNNING
    prefix: Node | None = None  # the last of its blocks that the prefix cache knows; None where it takes no part
    output_ids: list[int] = field(default_factory=list)
    draft_ids: list[int] = field(default_factory=list)  # guesses of what follows; written by a drafter before plan, emptied by commit
    num_computed_tokens: int = 0  # tokens of prompt and output whose keys and values stand in the blocks
    num_cached_tokens: int = 0  # of the prompt, those that were taken from the prefix cache when it began
    cache_miss: CacheMiss | None = None  # why the prefix cache did not give more
    num_scored_tokens: int = 0  # the prompt's tokens before this index are scored already, or not wanted; survives preemption
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None  # None until FINISHED; a failed request is finished by "abort"

    def __post_init__(self) -> None:
        self.num_scored_tokens = len(self.prompt_ids) if self.score_from is None else max(1, self.score_from)

    @property
    def is_over(self) -> bool:
        """Its grammar is at its end: nothing can follow the tokens so far."""
        return self.matcher is not None and self.matcher.is_over

    @property
    def is_scored(self) -> bool:
        """Tokens of its prompt are still to be scored."""
        return self.num_scored_tokens < len(self.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: the prompt and what was generated."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_pending_tokens(self) -> int:
        """Known tokens that are not yet computed: 1 while decoding, more while the prompt (or a recomputation) is under way."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def max_cached_tokens(self) -> int:
        """Known tokens that need not be computed if their keys and values are at hand.

        The last one is computed, because its logits are wanted; so is each that is followed by one whose score is wanted.
        """
        num_unscored = self.num_scored_tokens if self.is_scored else self.num_tokens
        return max(0, min(self.num_tokens, num_unscored) - 1)

    def token_ids(self, start: int, end: int) -> list[int]:
        """The tokens of the half-open range: prompt, output, and the drafts behind it."""
        num_prompt = len(self.prompt_ids)
        if self.draft_ids and end > self.num_tokens:
            return [*self.prompt_ids, *self.output_ids, *self.draft_ids][start:end]
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt]
        return [*self.prompt_ids[start:end], *self.output_ids[: max(0, end - num_prompt)]]
