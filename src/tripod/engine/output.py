"""The tokens of one request turned into its events: text without broken characters, cut at stop strings, then the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tripod.engine.execution.runner import TokenScore
from tripod.engine.policy.request import Request
from tripod.messages import FinishReason, Timings, TokenLogprob, Usage
from tripod.text.detokenizer import Detokenizer
from tripod.text.stop import StopStrings
from tripod.text.tokenizer import Tokenizer
from tripod.text.tool_format import special_marks
from tripod.trace import Delta, Event, Finished

_PROMPT_TAIL = 16  # tokens of the prompt that tell whether the answer opens a text or goes on inside one


@dataclass(slots=True)
class Clock:
    """When a request reached each phase, in seconds of the monotonic clock; None where it never did."""

    arrived_s: float
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    def timings(self) -> Timings:
        """The seconds between; a phase that was not reached took none."""
        started_s = self.started_s if self.started_s is not None else self.arrived_s
        first_s = self.first_token_s if self.first_token_s is not None else started_s
        last_s = self.last_token_s if self.last_token_s is not None else first_s
        return Timings(queue_s=started_s - self.arrived_s, prefill_s=first_s - started_s, decode_s=last_s - first_s)


class RequestOutput:
    """Makes the events of one request. Law: the token ids of its Deltas, joined, are all that was generated."""

    def __init__(self, request: Request, tokenizer: Tokenizer, *, model: str, mode: str = "", arrived_s: float) -> None:
        self.request = request
        self.clock = Clock(arrived_s)
        self._tokenizer = tokenizer
        self._model = model
        self._mode = mode
        if request.sampling.grammar is None:
            self._detokenizer = Detokenizer(tokenizer)
            for token_id in request.prompt_ids[-_PROMPT_TAIL:]:
                self._detokenizer.push(token_id)
        else:  # a grammar reads the bytes of the output alone, as they are, so these are what is shown
            shown = special_marks(tokenizer).values() if request.sampling.grammar.kind == "tool_calls" else ()
            self._detokenizer = Detokenizer(tokenizer, is_opening=False, shown_ids=frozenset(shown))
        self._stop = StopStrings(request.sampling.stop) if request.sampling.stop else None
        self._step_ids: list[int] = []
        self._num_pushed = 0
        self._matched: str | None = None
        self._prompt_logprobs: list[TokenLogprob | None] = [None] * (request.score_from or 0)

    def add_prompt_scores(self, scores: Sequence[TokenScore]) -> None:
        """Log-probabilities of the next tokens of the prompt."""
        begin = len(self._prompt_logprobs)
        for token_id, token_score in zip(self.request.prompt_ids[begin : begin + len(scores)], scores, strict=True):
            self._prompt_logprobs.append(self._logprob(token_id, token_score))

    def take_part(self, step_id: int, now: float) -> bool:
        """The request takes part in a step. True for its first one."""
        self._step_ids.append(step_id)
        is_first = self.clock.started_s is None
        if is_first:
            self.clock.started_s = now
        return is_first

    def push(self, scores: Sequence[TokenScore], now: float) -> tuple[Delta, FinishReason | None]:
        """The event of the output tokens that were committed since the last call, and "stop" if a stop string ended the text.

        Args:
            scores: one a token, or none.
            now: seconds of the monotonic clock.
        """
        if self.clock.first_token_s is None:
            self.clock.first_token_s = now
        self.clock.last_token_s = now
        token_ids = self.request.output_ids[self._num_pushed :]
        text = "".join(map(self._push, token_ids))
        if self.request.finish_reason is not None and self._matched is None:
            text += self._flush()
        logprobs = tuple(self._logprob(token_id, token_score) for token_id, token_score in zip(token_ids, scores, strict=False))
        step_id = self._step_ids[-1] if self._step_ids else None
        delta = Delta(text=text, token_ids=tuple(token_ids), logprobs=logprobs, step_id=step_id)
        return delta, "stop" if self._matched is not None else None

    def _push(self, token_id: int) -> str:
        self._num_pushed += 1
        request = self.request
        if request.finish_reason == "stop" and token_id in request.stop_ids and self._num_pushed == len(request.output_ids):
            return ""  # the token that ended the text is not part of it
        return self._cut(self._detokenizer.push(token_id))

    def _cut(self, text: str) -> str:
        if self._stop is None or self._num_pushed <= self.request.sampling.min_tokens:
            return text
        safe, self._matched = self._stop.push(text)
        return safe

    def _flush(self) -> str:
        """What was held back, at the end of a text that no stop string cut."""
        text = self._cut(self._detokenizer.flush())
        if self._stop is not None and self._matched is None:
            rest, self._matched = self._stop.flush()
            text += rest
        return text

    def finish(self, reason: FinishReason) -> list[Event]:
        """The last events; held-back text of an aborted request is shown as well."""
        request = self.request
        text = self._flush() if reason == "abort" else ""
        events: list[Event] = [Delta(text=text)] if text else []
        finished = Finished(
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(request.prompt_ids), completion_tokens=len(request.output_ids), cached_tokens=request.num_cached_tokens
            ),
            cache_miss=str(request.cache_miss) if request.cache_miss is not None else None,
            timings=self.clock.timings(),
            stop=self._matched,
            prompt_logprobs=tuple(self._prompt_logprobs),
            model=self._model,
            mode=self._mode,
            step_ids=tuple(self._step_ids),
        )
        return [*events, finished]

    def _logprob(self, token_id: int, token_score: TokenScore) -> TokenLogprob:
        own, top = token_score
        return self._entry(token_id, own, tuple(self._entry(other, logprob, ()) for other, logprob in top))

    def _entry(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...]) -> TokenLogprob:
        return TokenLogprob(token_id, self._tokenizer.token_text(token_id), self._tokenizer.token_bytes(token_id), logprob, top)
