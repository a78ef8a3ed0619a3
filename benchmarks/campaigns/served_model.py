"""A server as a process of its own, for campaigns: a small model, faults on demand, and an account of itself at the end.

    python -m benchmarks.campaigns.served_model MODEL [--fail-every N] [--drain S] [--max-waiting N] ...

Prints its port when it listens, and a line of JSON when it has stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy

from benchmarks.shared_data import DATA
from tripod.prompts import Prompt

STORIES = DATA / "stories260K" / "stories260K.bin"
MODEL = "served"
APP = "echo"
VOCAB_SIZE = 512  # of the 260K model


@dataclass(slots=True)
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    root: str
    ending: dict[str, Any] | None = None

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        text = httpx.get(f"{self.root}/metrics", trust_env=False, timeout=30.0).text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def stop(self, *, timeout_s: float = 120.0) -> dict[str, Any]:
        """SIGTERM, and the account that the server gives at its end."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s=timeout_s)

    def wait(self, *, timeout_s: float = 120.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        out, _ = self.process.communicate(timeout=timeout_s)
        self.ending = json.loads(out.splitlines()[-1])
        assert self.ending is not None
        return self.ending


@contextmanager
def served(model: Path, *options: str) -> Iterator[Served]:
    """Starts the server and ends it, whatever happens."""
    command = [sys.executable, "-m", "benchmarks.campaigns.served_model", str(model), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            server = Served(process, f"http://127.0.0.1:{int(process.stdout.readline())}")
            deadline_s = time.monotonic() + 60.0
            while True:
                try:
                    if httpx.get(f"{server.root}/health", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    if time.monotonic() > deadline_s:
                        raise
                    time.sleep(0.05)
            yield server
        finally:
            process.kill()


def small_model(folder: Path) -> Path:
    """The 260K stories model where the data are; else a seeded model of its size, whose texts mean nothing."""
    return STORIES if STORIES.is_file() else tiny_model(folder, max_positions=512)


def tiny_model(folder: Path, *, max_positions: int, hidden_size: int = 32, num_layers: int = 2, is_ascii: bool = False) -> Path:
    """A seeded model with one token a byte. `is_ascii`: greedily, it says bytes below 128 alone."""
    from tripod.models.initialize import random_language_model
    from tripod.models.llama import LlamaConfig
    from tripod.models.save import save_checkpoint
    from tripod.ops.rope import RopeConfig
    from tripod.text.byte_level import VOCAB_SIZE as NUM_BYTES
    from tripod.text.byte_level import write_byte_tokenizer

    config = LlamaConfig(
        vocab_size=NUM_BYTES,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=hidden_size // 4,
        max_positions=max_positions,
        rope=RopeConfig(rotary_dim=hidden_size // 4),
    )
    model = random_language_model(config, seed=3)
    if is_ascii:
        model.head.weight[128:].zero_()  # logits of 0, which the largest of 128 random ones exceeds
    save_checkpoint(model, folder)
    write_byte_tokenizer(folder)
    return folder


class HashEncoder:
    """Unit vectors from a hash of the text: an encoder without weights."""

    dim = 8
    max_tokens = 64

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]

    def encode(self, texts: Sequence[str]) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[: self.dim] for text in texts]
        vectors = numpy.array([[byte + 1.0 for byte in digest] for digest in digests], numpy.float32)
        return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


class _Faulty:
    """The runner, except that about one step in `every` fails before it computes anything."""

    def __init__(self, runner: Any, every: int, seed: int) -> None:
        self._runner = runner
        self._every = every
        self._generator = random.Random(seed)
        self.num_failed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, *arguments: Any) -> Any:
        if self._generator.randrange(self._every) == 0:
            self.num_failed += 1
            raise RuntimeError("this step was made to fail")
        return self._runner.run(*arguments)


async def _echo(prompt: Prompt) -> str:
    return prompt.messages[-1].text


async def _serve(options: argparse.Namespace) -> None:
    import logging

    import psutil

    from tripod.engine.engine import Engine, EngineConfig
    from tripod.models.load import load_language_model
    from tripod.serving.app import build_app
    from tripod.serving.config import ServerConfig
    from tripod.serving.server import bind, serve
    from tripod.text.load_tokenizer import load_tokenizer

    logging.disable(logging.CRITICAL)  # the campaign counts failures; a traceback for each would be a log of megabytes
    path: Path = options.model
    tokenizer = load_tokenizer(path if path.is_dir() else path.parent)
    engine_config = EngineConfig(kv_tokens=options.kv_tokens, max_num_requests=options.max_running)
    config = ServerConfig(max_waiting_requests=options.max_waiting)
    listener = bind("127.0.0.1", 0)
    async with Engine(load_language_model(path), tokenizer, engine_config, name=MODEL) as engine:
        faulty = None
        if options.fail_every:
            faulty = engine._loop._runner = _Faulty(engine._loop._runner, options.fail_every, options.seed)  # type: ignore[assignment]
        app = build_app(engine, config=config, embedder=HashEncoder(), embedder_name="hash", apps={APP: _echo})
        print(listener.getsockname()[1], flush=True)
        await serve(app, listener, drain_s=options.drain)
        stats = engine.stats()
        ending = {
            "admitted": app.state.served.admission.num_admitted,
            "still_admitted": app.state.served.admission.num_waiting + app.state.served.admission.num_started,
            "running": stats.running,
            "waiting": stats.waiting,
            "unaccounted_blocks": stats.total_blocks - stats.free_blocks - stats.cached_blocks,
            "leaked_blocks": stats.leaked_blocks,
            "steps": stats.steps,
            "preemptions": stats.preemptions,
            "failed_steps": faulty.num_failed if faulty is not None else 0,
            "rss_bytes": psutil.Process().memory_info().rss,
        }
    print(json.dumps(ending), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kv-tokens", type=int, default=16384)
    parser.add_argument("--max-running", type=int, default=32)
    parser.add_argument("--max-waiting", type=int, default=512)
    parser.add_argument("--fail-every", type=int, default=0, help="about one step in so many fails")
    parser.add_argument("--drain", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
