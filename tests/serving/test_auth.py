"""API keys: read from anywhere, told apart, and never shown."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.serving.live_server import live_server
from tests.serving.tiny import NAME
from tripod.engine.engine import Engine
from tripod.errors import ConfigError
from tripod.serving.app import build_app
from tripod.serving.auth import ApiKeys

BODY = {"model": NAME, "prompt": "Hi", "max_tokens": 1}


def test_keys_are_read_from_lines_with_or_without_a_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nalice sk-1\n  sk-2  \nalice sk-3\n")
    keys = ApiKeys.read(["sk-0"], file)
    assert keys.tenant("Bearer sk-1") == keys.tenant("bearer sk-3") == "alice"
    unnamed = {keys.tenant("Bearer sk-0"), keys.tenant("Bearer sk-2")}
    assert len(unnamed) == 2
    assert all(name is not None and name.startswith("key-") for name in unnamed)
    for wrong in ("Bearer sk-4", "Bearer alice", "Basic sk-1", "sk-1", "Bearer ", "", None):
        assert keys.tenant(wrong) is None, wrong
    assert "sk-" not in repr(keys)


def test_a_file_that_would_let_everybody_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        ApiKeys.read([], tmp_path / "empty")
    with pytest.raises(ConfigError, match="cannot read the API keys"):
        ApiKeys.read([], tmp_path / "absent")
    with pytest.raises(ConfigError, match="3 words"):
        ApiKeys.of(["a b c"])


def test_without_its_key_nothing_is_answered_but_health_metrics_and_the_document(engine: Engine) -> None:
    app = build_app(engine, api_keys=ApiKeys.of(["alice sk-1"]))
    with live_server(app) as server, httpx.Client(base_url=server.root, trust_env=False) as http:
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"):
            assert http.get(path).status_code == 200, path
        for path in ("/v1/models", "/debug/steps", "/v1/nothing"):
            assert http.get(path).status_code == 401, path
        for key in (None, "Bearer sk-2"):
            refused = http.post("/v1/completions", json=BODY, headers={"authorization": key} if key else {})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert http.post("/v1/completions", json=BODY, headers={"authorization": "Bearer sk-1"}).status_code == 200
