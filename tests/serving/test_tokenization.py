"""/tokenize and /detokenize: one byte is one token of the tiny model, so the ids can be written down."""

from __future__ import annotations

import httpx

from tests.serving.live_server import LiveServer
from tests.serving.tiny import MAX_CONTEXT, NAME


def post(server: LiveServer, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.root}{path}", json={"model": NAME, **body}, trust_env=False, timeout=30.0)


def test_a_prompt_and_back(server: LiveServer) -> None:
    tokens = post(server, "/tokenize", prompt="Héy", add_special_tokens=False, return_token_strs=True).json()
    assert (tokens["count"], tokens["max_model_len"], len(tokens["tokens"])) == (4, MAX_CONTEXT, 4)
    assert tokens["token_strs"][0] == "H"
    assert post(server, "/detokenize", tokens=tokens["tokens"]).json() == {"prompt": "Héy"}


def test_a_conversation_is_what_a_chat_is_charged_for(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    charged = post(server, "/v1/chat/completions", messages=messages, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert post(server, "/tokenize", messages=messages).json()["count"] == charged


def test_what_is_neither_or_both_or_not_in_the_vocabulary_is_refused(server: LiveServer) -> None:
    assert post(server, "/tokenize").status_code == 400
    assert post(server, "/tokenize", prompt="a", messages=[{"role": "user", "content": "Hi"}]).status_code == 400
    refused = post(server, "/detokenize", tokens=[10**9])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")
