"""What an answer, the metrics and the ring of steps say of one and the same work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.live_server import live_server
from tests.serving.test_raw_http import frames_of, sample
from tests.serving.tiny import NAME, open_tiny
from tripod.engine.engine import Engine, EngineConfig
from tripod.serving.app import build_app

BEGINNING = "the same beginning, long enough for two blocks and more"  # 55 tokens: 3 full blocks of 16
FIELDS: dict[str, Any] = {"model": NAME, "max_tokens": 5, "temperature": 0, "ignore_eos": True}


def test_cached_tokens_misses_and_steps_are_told_alike_wherever_one_looks(tiny_folder: Path) -> None:
    engine = open_tiny(tiny_folder, EngineConfig())
    with live_server(build_app(engine)) as server, httpx.Client(base_url=server.root, trust_env=False, timeout=60.0) as http:

        def completion(prompt: str) -> dict[str, Any]:
            return http.post("/v1/completions", json={**FIELDS, "prompt": prompt}).json()  # type: ignore[no-any-return]

        def streamed(prompt: str) -> dict[str, Any]:
            body = {**FIELDS, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
            *chunks, usage = [json.loads(frame) for frame in frames_of(http.post("/v1/completions", json=body)) if frame != "[DONE]"]
            return {"usage": usage["usage"], "tripod": chunks[-1]["tripod"]}

        answers = [completion(BEGINNING + "?"), completion(BEGINNING + "!"), streamed(BEGINNING + "!")]
        metrics = http.get("/metrics").text
        steps = {step["id"]: step for step in http.get("/debug/steps").json()["steps"]}
    asyncio.run(engine.aclose())
    assert [answer["tripod"]["cached_tokens"] for answer in answers] == [0, 48, 48]
    assert [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers] == [0, 48, 48]
    assert answers[0]["tripod"]["cache_miss"].startswith("nothing like the tokens from 0 on")
    assert answers[1]["tripod"]["cache_miss"] is None  # the block after the cached ones is not full, so there was no more to give
    assert sample(metrics, "tripod_prefix_cache_queries_total") == 3 * 56
    assert sample(metrics, "tripod_prefix_cache_hits_total") == 2 * 48
    for answer, num_computed in zip(answers, (56, 8, 8), strict=True):
        own = [steps[step_id] for step_id in answer["tripod"]["step_ids"]]
        assert len(own) == answer["usage"]["completion_tokens"] == 5
        assert sum(step["num_prefill_tokens"] for step in own) == num_computed
        assert sum(step["num_cached_tokens"] for step in own) == answer["tripod"]["cached_tokens"]
        assert sum(step["num_decode_tokens"] for step in own) == 4  # the first token comes from the prompt's step


def test_generated_tokens_are_counted_as_they_come_and_also_those_of_an_answer_that_is_left(tiny_folder: Path) -> None:
    engine = open_tiny(tiny_folder, EngineConfig())
    with live_server(build_app(engine)) as server, httpx.Client(base_url=server.root, trust_env=False, timeout=60.0) as http:
        with http.stream("POST", "/v1/completions", json={**FIELDS, "prompt": "x", "max_tokens": 400, "stream": True}) as answer:
            assert any(line.startswith("data:") for line in answer.iter_lines())
            begun = sample(http.get("/metrics").text, "tripod_generation_tokens_total")
        assert begun >= 1
        whole = http.post("/v1/completions", json={**FIELDS, "prompt": "y", "n": 3, "seed": 1, "temperature": 1}).json()
        assert whole["usage"]["completion_tokens"] == 15
        assert sample(http.get("/metrics").text, "tripod_generation_tokens_total") >= begun + 15
    asyncio.run(engine.aclose())


def test_only_long_texts_say_how_many_tokens_a_character_makes(engine: Engine) -> None:
    app = build_app(engine)
    with live_server(app) as server, httpx.Client(base_url=server.root, trust_env=False, timeout=60.0) as http:
        for _ in range(10):  # a character each, among the tokens of the template
            body = {**FIELDS, "messages": [{"role": "user", "content": "H"}]}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert app.state.served.tokens_per_character.value == 0.25
        assert http.post("/v1/completions", json={**FIELDS, "prompt": "x" * 400}).status_code == 200
        assert app.state.served.tokens_per_character.value == pytest.approx(0.25 + 0.01 * (1.0 - 0.25))  # a byte is a token here
