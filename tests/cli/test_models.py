"""`tripod generate`, `chat` and `serve` with a small seeded model, and `doctor`."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Command

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with one token a byte."""
    from tripod.models.initialize import random_language_model
    from tripod.models.llama import LlamaConfig
    from tripod.models.save import save_checkpoint
    from tripod.ops.rope import RopeConfig
    from tripod.text.byte_level import VOCAB_SIZE, write_byte_tokenizer

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_positions=512,
        rope=RopeConfig(rotary_dim=16),
    )
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(random_language_model(config, seed=0), folder)
    write_byte_tokenizer(folder)
    return folder


def test_a_text_is_continued_on_stdout(tripod: Command, model: Path) -> None:
    import torch

    import tripod as package
    from tripod.engine.engine import Engine
    from tripod.sampling import SamplingParams

    async def expected() -> str:
        async with Engine.load(str(model), dtype=torch.float32) as engine:
            return (await engine.generate("Once upon", SamplingParams(temperature=0.0, max_tokens=12))).text

    outcome = tripod("generate", model, "Once upon", "--max-tokens", "12")
    assert outcome.code == 0
    assert outcome.out == package.run(expected()) + "\n"
    assert "9 tokens in, 12 out (length)" in outcome.err


def test_a_prompt_may_come_from_stdin(tripod: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = tripod("generate", model, "Once upon", "--max-tokens", "8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon"))
    assert tripod("generate", model, "-", "--max-tokens", "8").out == direct.out


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(tripod: Command, model: Path) -> None:
    outcome = tripod("generate", model, "x" * 600)
    assert (outcome.code, outcome.out) == (2, "")
    assert "600" in outcome.err
    assert "512" in outcome.err


def test_a_conversation_ends_with_its_input(tripod: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/clear\nHello\n/bye\nnever read\n"))
    outcome = tripod("chat", model, "--temperature", "0", "--max-tokens", "6")
    assert outcome.code == 0
    first, second = outcome.out[: len(outcome.out) // 2], outcome.out[len(outcome.out) // 2 :]
    assert first == second  # /clear forgot the first turn, so the second greeting is answered alike
    assert "Ctrl-D" in outcome.err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_healthy(process: subprocess.Popen[str], client: httpx.Client) -> None:
    deadline = time.monotonic() + 90.0
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)


def test_a_server_is_ready_when_health_says_so_stops_on_sigterm_and_what_it_did_can_be_done_again(
    tripod: Command, model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "run.jsonl"
    (tmp_path / "own_apps.py").write_text("async def shout(prompt):\n    return prompt.messages[-1].text.upper()\n")

    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tripod",
            "serve",
            str(model),
            "--port",
            str(port),
            "--kv-tokens",
            "512",
            "--weights",
            "f32",
            "--batch-invariant",
            "--timeline",
            "--max-waiting-requests",
            "3",
            "--name",
            "our-model",
            "--app",
            "shout=own_apps:shout",
            "--tool-format",
            "llama",
            "--log",
            str(log),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_until_healthy(process, client)
            assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["our-model", "shout"]
            assert client.post("/apps/shout", json={"input": "Hi"}).json()["text"] == "HI"
            body = {"model": "our-model", "prompt": "Once", "max_tokens": 4, "temperature": 0}
            answer = client.post("/v1/completions", json=body).json()
            assert answer["usage"]["completion_tokens"] == 4
            assert answer["tripod"]["batch_invariant"] is True
            refused = client.post("/v1/embeddings", json={"model": "our-model", "input": "a"})
            assert refused.status_code == 400
            assert "--embedder" in refused.json()["error"]["message"]
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert f"http://127.0.0.1:{port}/v1" in err
    assert "start: imports" in err
    assert "weights in f32; KV pool of 512 tokens" in err
    assert "512 tokens a request" in err
    again = tripod("replay", log)
    assert (again.code, again.out) == (0, "4 steps and 4 tokens are the same\n")
    text = log.read_text(encoding="utf-8")
    third = next(line for line in text.splitlines() if '"event":"step","step":2,' in line)
    changed = re.sub(r'("tokens":\{"[^"]+":\[)\d+', r"\g<1>258", third)
    assert changed != third
    log.write_text(text.replace(third, changed), encoding="utf-8")
    again = tripod("replay", log)
    assert again.code == 1
    assert again.out.startswith("step 2 differs: request request-")
    assert "output token 2: logged [258], now [" in again.out


def test_a_server_keeps_as_many_experts_in_memory_as_it_is_told_and_says_how_often_one_was_there(tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.engine.tiny_models import MIXTRAL, tiny_model
    from tripod.models.save import save_checkpoint
    from tripod.ops.kernels.cpu import library
    from tripod.text.byte_level import write_byte_tokenizer

    if library.why_not() is not None:
        pytest.skip(str(library.why_not()))
    folder = tmp_path / "model"
    save_checkpoint(tiny_model(replace(MIXTRAL, router=replace(MIXTRAL.router, num_experts=8))), folder)  # 16 experts in 2 layers
    write_byte_tokenizer(folder)
    port = free_port()
    command = [sys.executable, "-m", "tripod", "serve", str(folder), "--port", str(port), "--expert-cache", "9", "--name", "sparse"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_until_healthy(process, client)
            body = {"model": "sparse", "prompt": "Once", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
            assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 40
            counts = dict(re.findall(r"^tripod_expert_cache_(\w+)_total (\S+)$", client.get("/metrics").text, flags=re.MULTILINE))
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    hits, misses = float(counts["hits"]), float(counts["misses"])
    # Each of 40 steps asks 2 layers for 2 experts, the first for those of the 4 tokens of a prompt: 2 at least, and 8 at most.
    assert 40 * 2 * 2 <= hits + misses <= 40 * 2 * 2 + 2 * 6
    assert hits > 0
    assert misses > 16, "16 experts do not fit 9 places: some were fetched again"


def test_a_plan_says_what_will_be_taken_and_ends_with_one_where_it_does_not_fit(tripod: Command, model: Path) -> None:
    outcome = tripod("plan", model, "--weights", "f32", "--kv-tokens", "100")
    assert outcome.code == 0
    assert "(112 tokens of 256 bytes)" in outcome.out  # keys and values of 2 layers of one head of 16 float32; blocks of 16 tokens
    assert "one request has at most 512" in outcome.out
    outcome = tripod("plan", model, "--weights", "f32", "--kv-tokens", "1000000000000")
    assert outcome.code == 1
    assert "too much" in outcome.out


def test_a_port_in_use_is_named_before_anything_is_loaded(tripod: Command, model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = tripod("serve", model, "--port", str(port))
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: port {port} on 127.0.0.1 is in use")


def test_the_doctor_tells_paths_to_programs_too(tripod: Command, cache: Path) -> None:
    found = json.loads(tripod("doctor", "--json").out)
    assert found["python"]["executable"] == sys.executable
    assert found["folders"]["indexes and demo"] == str(cache / "tripod")
    assert found["torch"]["threads"] >= 1
    assert set(found["paths"]) == {"embedder", "engine", "CPU kernels", "retrieval", "server", "answers"}
    assert str(found["paths"]["embedder"]) in tripod("doctor").out


def test_options_of_a_language_model_are_refused_for_an_encoder(tripod: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    outcome = tripod("serve", tmp_path, "--port", "0", "--app", "own_apps:shout")
    assert outcome.code == 2
    assert "give NAME=MODULE:OBJECT, such as handbook=my_apps:handbook" in outcome.err
    outcome = tripod("serve", tmp_path, "--port", "0", "--weights", "int8", "--log", tmp_path / "run.jsonl")
    assert outcome.code == 2
    assert "is an encoder, which has no --weights and no --log; leave that out" in outcome.err
