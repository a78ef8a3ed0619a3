"""The Engine's public methods over a seeded table instead of a model (until the engine lands)."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace

from tripod.errors import ContextLengthError
from tripod.messages import Timings, TokenLogprob, Usage
from tripod.sampling import SamplingParams
from tripod.text.detokenizer import Detokenizer
from tripod.text.stop import StopStrings
from tripod.trace import Delta, Event, Finished


class FakeEngine:
    name = "tiny"
    max_context = 256

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.running = 0

    def stats(self):
        return SimpleNamespace(running=self.running, waiting=0, total_blocks=16, free_blocks=16 - self.running, cached_blocks=0)

    def _distribution(self, ids: Sequence[int]) -> list[float]:
        rng = random.Random(",".join(map(str, ids[-4:])))
        weights = [rng.expovariate(1.0) ** 3 for _ in range(95)]
        total = sum(weights)
        return [math.log(w / total) for w in weights]

    def _entry(self, logprobs, i: int, num: int) -> TokenLogprob:
        def one(j, top=()):
            return TokenLogprob(j + 32, self.tokenizer.token_text(j + 32), self.tokenizer.token_bytes(j + 32), logprobs[j], top)

        best = sorted(range(95), key=lambda j: -logprobs[j])[:num]
        return one(i, tuple(one(j) for j in best))

    async def stream(self, prompt, sampling: SamplingParams, *, request_id=None) -> AsyncGenerator[Event, None]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        n = len(ids)
        if n + (sampling.max_tokens or 0) > self.max_context:
            raise ContextLengthError(f"{n} + {sampling.max_tokens} > {self.max_context}")
        self.running += 1
        rng = random.Random(sampling.seed)
        detok, stops = Detokenizer(self.tokenizer), StopStrings(sampling.stop)
        reason, stop = "length", None
        try:
            limit = self.max_context - n if sampling.max_tokens is None else sampling.max_tokens
            made = 0
            while made < limit:
                await asyncio.sleep(0.002)
                lp = self._distribution(ids)
                if sampling.is_greedy:
                    i = max(range(95), key=lambda j: lp[j])
                else:
                    i = rng.choices(range(95), weights=[math.exp(x) for x in lp])[0]
                ids.append(i + 32)
                made += 1
                text, stop = stops.push(detok.push(i + 32))
                entries = () if sampling.logprobs is None else (self._entry(lp, i, sampling.logprobs),)
                yield Delta(text=text, token_ids=(i + 32,), logprobs=entries)
                if stop:
                    reason = "stop"
                    break
            rest = detok.flush()
            text, stop2 = stops.push(rest)
            tail, stop3 = stops.flush()
            if text + tail:
                yield Delta(text=text + tail)
            plp = ()
            if sampling.prompt_logprobs is not None:
                plp = [None]
                for k in range(1, n):
                    lp = self._distribution(ids[:k])
                    plp.append(self._entry(lp, min(max(ids[k] - 32, 0), 94), sampling.prompt_logprobs))
            yield Finished(
                finish_reason=reason,
                usage=Usage(prompt_tokens=n, completion_tokens=made),
                timings=Timings(),
                stop=stop or stop2 or stop3,
                prompt_logprobs=tuple(plp),
                model=self.name,
            )
        finally:
            self.running -= 1
