"""Models whose template is absent, strict or broken: the request is refused with a reason, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.live_server import live_server
from tests.serving.tiny import NAME, open_tiny, write_tiny
from tripod.engine.engine import Engine, EngineConfig
from tripod.errors import ConfigError
from tripod.serving.app import build_app


@contextmanager
def chat(folder: Path, template: str | None, **options: Any) -> Iterator[httpx.Response]:
    write_tiny(folder, chat_template=False)
    if template is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    engine = open_tiny(folder, EngineConfig())
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    with live_server(build_app(engine, **options)) as server:
        yield httpx.post(f"{server.url}/chat/completions", json=body, trust_env=False)
    asyncio.run(engine.aclose())


def test_a_model_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    with chat(tmp_path, None) as response:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages"
        assert "'plain'" in response.json()["error"]["message"]
        assert "/v1/completions" in response.json()["error"]["message"]


def test_a_model_without_a_template_is_served_plainly_on_request(tmp_path: Path) -> None:
    with chat(tmp_path, None, chat_template="plain") as response:
        assert response.status_code == 200
        assert response.json()["usage"]["prompt_tokens"] == len(b"user: Hi\nassistant:")


def test_an_unknown_choice_of_template_is_refused_when_the_app_is_built(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="'fancy' is unknown"):
        build_app(engine, chat_template="fancy")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ ''.__class__.mro() }}", "sandbox"),
    ],
)
def test_a_template_that_refuses_or_fails_is_a_400_with_its_reason(tmp_path: Path, template: str, reason: str) -> None:
    with chat(tmp_path, template) as response:
        assert response.status_code == 400
        assert reason in response.json()["error"]["message"]
        assert response.json()["error"]["param"] == "messages"
