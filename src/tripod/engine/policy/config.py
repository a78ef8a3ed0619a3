"""The limits that the policy keeps."""

from __future__ import annotations

from dataclasses import dataclass

from tripod.errors import ConfigError, ContextLengthError

CHUNK_BESIDE_DECODES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """The limits that the policy keeps; checked when it is built."""

    num_blocks: int  # the KV pool
    block_size: int  # tokens in a block
    max_context: int  # tokens of prompt and answer that the model can tell apart
    max_batch_tokens: int  # one budget a step, for decodes and prompt chunks together
    max_num_requests: int  # running at once
    chunk_beside_decodes: int | None = None  # tokens of one prompt in a step that others decode in, and one more for each; None: no bound
    max_num_waiting: int  # the queue's length in requests
    max_waiting_tokens: int | None = None  # and in tokens; None: no bound but the number of requests
    max_wait_s: float | None = None  # a request that would wait longer, as far as can be foreseen, is refused; None: no bound
    prefix_cache: bool = True  # reuse the keys and values of beginnings that were computed before
    fair: bool = True  # tenants share the engine equally; False: one queue for all
    aging_s: float | None = 60.0  # so long a wait makes up for one level of priority; None: priorities are strict, and may starve

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_context", "max_batch_tokens", "max_num_requests", "max_num_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} leaves no room for any request; give at least 1")
        if self.max_batch_tokens < self.max_num_requests:
            raise ConfigError(
                f"max_batch_tokens={self.max_batch_tokens} is less than max_num_requests={self.max_num_requests}, so a step could not "
                f"give every running request one token; raise the first or lower the second"
            )
        if self.chunk_beside_decodes is not None and self.chunk_beside_decodes < 1:
            raise ConfigError(
                f"chunk_beside_decodes={self.chunk_beside_decodes} would keep prompts from beginning; give at least 1, or None for no bound"
            )
        if self.max_waiting_tokens is not None and self.max_waiting_tokens < 1:
            raise ConfigError(f"max_waiting_tokens={self.max_waiting_tokens} lets nobody wait; give at least 1, or None for no bound")
        if self.max_wait_s is not None and not self.max_wait_s > 0.0:
            raise ConfigError(f"max_wait_s={self.max_wait_s} lets nobody wait; give seconds above 0, or None for no bound")
        if self.aging_s is not None and not 0.0 < self.aging_s < float("inf"):
            raise ConfigError(f"aging_s={self.aging_s} is not a time; give seconds above 0, or None for strict priorities")

    @property
    def max_request_tokens(self) -> int:
        """Tokens of prompt and answer together that one request may have."""
        return min(self.max_context, self.num_blocks * self.block_size)

    def resolve_max_tokens(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """The most tokens that a request may generate; with `max_tokens=None`, as many as fit.

        Raises:
            ContextLengthError: prompt and answer together can never fit.
        """
        limit = self.max_request_tokens
        wanted = 1 if max_tokens is None else max_tokens
        if num_prompt_tokens + wanted > limit:
            holder = "the model's context" if limit == self.max_context else f"the KV pool ({self.num_blocks} blocks of {self.block_size})"
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens and the answer may take {wanted}, "
                f"{num_prompt_tokens + wanted} together; {holder} holds {limit} tokens. Shorten the prompt or lower max_tokens",
                param="max_tokens" if num_prompt_tokens < limit else "prompt",
            )
        return limit - num_prompt_tokens if max_tokens is None else max_tokens
