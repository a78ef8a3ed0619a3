"""Use a checkpoint in this process: stream a text, sample it again with a seed, and rate a continuation.

    python examples/local_checkpoint.py path/to/checkpoint "Once upon a time"

The checkpoint is a folder in the Hugging Face layout (Pythia, Llama, Mistral, Qwen, SmolLM), `org/name@revision`, or a llama2.c file.
"""

from __future__ import annotations

import sys

import tripod
from tripod.trace import Delta


async def main(address: str, prompt: str) -> None:
    async with tripod.Engine.load(address) as engine:
        print(f"{engine.name}: {engine.tokenizer.vocab_size} tokens, at most {engine.max_context} of prompt and answer together")

        # An answer is a stream of events; the last one says what it cost.
        async for event in engine.stream(prompt, tripod.SamplingParams(temperature=0.0, max_tokens=32)):
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
            else:
                print(f"\n({event.finish_reason}, {event.usage.completion_tokens} tokens)")

        # A seed makes sampling repeatable, alone or among other requests.
        sampling = tripod.SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=16)
        first = await engine.generate(prompt, sampling)
        again = await engine.generate(prompt, sampling)
        assert first.token_ids == again.token_ids
        print(f"seed 7, twice: {first.text!r}")

        # The same engine rates texts, which is what evaluations are made of.
        score = await engine.score(engine.tokenizer.encode(prompt), first.token_ids)
        print(f"log-probability of that: {score.total:.2f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} MODEL PROMPT")
    tripod.run(main(sys.argv[1], sys.argv[2]))
