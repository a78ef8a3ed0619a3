"""The same tokens over HTTP: alone, among others, and with a KV pool so small that requests are preempted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import NAME, open_tiny
from tripod.engine.engine import Engine, EngineConfig
from tripod.models.load import load_language_model
from tripod.serving.app import build_app
from tripod.text.load_tokenizer import load_tokenizer

STARTS = [
    "Tom and",
    "The cat",
    "One day",
    "Lily",
    "A big dog",
    "It was",
    "Once there",
    "Mom said",
    "In the park",
    "He",
    "She ran",
    "My",
    "Sam",
    "Why",
    "Zoo",
]


async def streamed(client: openai.AsyncOpenAI, prompt: Any, **fields: Any) -> str:
    stream = await client.completions.create(prompt=prompt, stream=True, **fields)
    return "".join([chunk.choices[0].text async for chunk in stream])


def together(server: LiveServer, prompts: Sequence[Any], **fields: Any) -> list[str]:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(streamed(client, prompt, **fields) for prompt in prompts))

    return asyncio.run(ask())


def test_the_trained_model_tells_its_known_story_to_a_streaming_client(shared_data: Path) -> None:
    folder = shared_data / "stories260K"
    golden = (folder / "greedy-golden.txt").read_text(encoding="utf-8").removesuffix("\n")
    model, tokenizer = load_language_model(folder / "stories260K.bin"), load_tokenizer(folder)
    fields: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 256}
    for config in (EngineConfig(), EngineConfig(kv_tokens=1024, block_size=8)):
        engine = Engine(model, tokenizer, config, name=NAME)
        with live_server(build_app(engine)) as server:
            assert together(server, [[1]], **fields) == [golden]  # 1 is the token that begins a text
            assert together(server, [[1], *STARTS], **fields)[0] == golden
            assert (engine.stats().preemptions > 0) == (config.kv_tokens is not None)
        asyncio.run(engine.aclose())


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9, "seed": 17}], ids=["greedy", "sampled"])
def test_preempted_requests_say_what_they_say_alone(tiny_folder: Path, sampling: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"model": NAME, "max_tokens": 48, "extra_body": {"ignore_eos": True}, **sampling}
    engine = open_tiny(tiny_folder, EngineConfig(kv_tokens=256))
    with live_server(build_app(engine)) as server:
        alone = [together(server, [prompt], **fields)[0] for prompt in STARTS]
        assert engine.stats().preemptions == 0
        assert together(server, STARTS, **fields) == alone
        assert engine.stats().preemptions > 0
    asyncio.run(engine.aclose())
