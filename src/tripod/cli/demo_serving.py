"""Act 3 of the demo: the same tokens alone, in a crowd, and with too little memory, through the openai client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from rich.console import Console

    from tripod.engine.engine import Engine, EngineConfig
    from tripod.models.architectures import Decoder

PROMPT = "The same request gives the same tokens, whoever else is asking. "
TRAINED_PROMPT = "Return the same string as the function, whoever else is asking. "  # nearer to what act 2 trains on
NUM_TOKENS = 96
NUM_OTHERS = 15
SMALL_POOL = 512  # tokens; sixteen requests of some 160 tokens each do not fit
_NEEDED = {"torch": "engine", "safetensors": "engine", "tokenizers": "engine", "starlette": "serve", "uvicorn": "serve", "openai": ""}
# The 95 printable characters of ASCII, so that a random model writes something that a terminal can show.
_UNPRINTABLE = {token_id: -100.0 for token_id in range(259) if not 32 <= token_id < 127}


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is served."""

    folder: Path
    model: Decoder
    prompt: str
    bias: Mapping[int, float]  # of tokens that are not to come


@dataclass(frozen=True, slots=True)
class _Run:
    text: str
    tokens_per_s: float  # of our request
    total_tokens_per_s: float  # of all requests together
    preemptions: int


def serve_a_model(console: Console, trained: Path | None = None) -> list[str]:
    """Plays the act with the checkpoint that act 2 trained, or with a random model; returns the claims that did not hold."""
    console.rule("Act 3: serve a model", style="bold")
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        extras = sorted({_NEEDED[package] for package in missing} - {""})
        install = [f"'tripod[{','.join(extras)}]'"] if extras else []
        install += ["openai"] if "openai" in missing else []
        console.print(f"skipped: not installed: {', '.join(missing)}; run: pip install {' '.join(install)}", markup=False, style="yellow")
        return []
    return asyncio.run(_play(console, trained))


async def _play(console: Console, trained: Path | None) -> list[str]:
    from tripod.engine.engine import EngineConfig

    subject = _seeded_model() if trained is None else _trained_model(trained)
    folder = subject.folder
    num_parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    if trained is None:
        story = f"A model of {num_parameters:,} random numbers, one token a byte. It has nothing to say: it shows exactness, not wit."
    else:
        story = f"The model of {num_parameters:,} parameters that act 2 trained, as its run left it on the disk."
    console.print(story, style="dim")
    console.print(f"  {folder}", markup=False, soft_wrap=True)
    expected = await asyncio.to_thread(_plain_greedy, subject)
    beginning = " ".join(expected.split())[:48]
    console.print(f"  the model alone, without any engine, continues with: {beginning}...", markup=False)
    console.print()

    runs: list[tuple[str, _Run]] = []
    async with _served(subject, EngineConfig()) as server:
        runs.append(("alone", await server.ask(num_others=0)))
        runs.append((f"among {NUM_OTHERS} others", await server.ask(num_others=NUM_OTHERS)))
    async with _served(subject, EngineConfig(kv_tokens=SMALL_POOL)) as server:
        runs.append((f"the same with a KV pool of {SMALL_POOL} tokens", await server.ask(num_others=NUM_OTHERS)))

    _print_runs(console, runs, expected)
    same = sum(run.text == expected for _, run in runs)
    preemptions = runs[-1][1].preemptions
    console.print(f"same tokens: {same}/{len(runs)}", style="bold green" if same == len(runs) else "bold red")
    console.print("Serve your own:  tripod serve MODEL", style="dim")
    failures = [f"{name}: {run.text!r} instead of {expected!r}" for name, run in runs if run.text != expected]
    if not preemptions:
        failures.append(f"a KV pool of {SMALL_POOL} tokens was to preempt requests, and none was")
    return failures


def _print_runs(console: Console, runs: list[tuple[str, _Run]], expected: str) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), show_edge=False)
    table.add_column("the openai client streams a completion")
    for heading in ("tokens/s", "all together", "preemptions", "tokens"):
        table.add_column(heading, justify="right")
    for name, run in runs:
        verdict = "same" if run.text == expected else "DIFFERENT"
        table.add_row(name, f"{run.tokens_per_s:.0f}", f"{run.total_tokens_per_s:.0f}", str(run.preemptions), verdict)
    console.print(table)
    console.print()


def _trained_model(folder: Path) -> _Subject:
    from tripod.models.load import load_language_model
    from tripod.text.load_tokenizer import load_tokenizer

    ends = load_tokenizer(folder).eos_ids
    return _Subject(folder, load_language_model(folder), TRAINED_PROMPT, dict.fromkeys(sorted(ends), -100.0))


def _seeded_model() -> _Subject:
    """A small Llama out of a seed, saved where any server can open it."""
    import torch
    from platformdirs import user_cache_path

    from tripod.models.initialize import random_language_model
    from tripod.models.llama import Llama, LlamaConfig
    from tripod.models.save import save_checkpoint
    from tripod.ops.rope import RopeConfig
    from tripod.text.byte_level import VOCAB_SIZE, write_byte_tokenizer

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_positions=1024,
        rope=RopeConfig(rotary_dim=32),
    )
    model = random_language_model(config, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)  # at the usual size a random model soon repeats one token, which is easy to get right
    assert isinstance(model, Llama)
    folder = user_cache_path("tripod", appauthor=False) / "demo" / "random-llama"
    save_checkpoint(model, folder)
    write_byte_tokenizer(folder)
    return _Subject(folder, model, PROMPT, _UNPRINTABLE)


def _plain_greedy(subject: _Subject) -> str:
    """What the model says to the prompt, by the plainest loop: the whole text through the model for each token, no cache, no batch."""
    import torch

    from tripod.ops.attention import causal_attention
    from tripod.text.load_tokenizer import load_tokenizer

    tokenizer, model = load_tokenizer(subject.folder), subject.model
    prompt = tokenizer.encode(subject.prompt)
    ids = list(prompt)
    forbidden = torch.tensor(sorted(subject.bias))
    for _ in range(NUM_TOKENS):
        with torch.inference_mode():
            hidden = model.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], causal_attention)
            logits = model.logits(hidden[0, -1])
            logits[forbidden] -= 100.0
            ids.append(int(logits.argmax()))
    return tokenizer.decode(ids[len(prompt) :])


class _Server:
    """Our server on a free loopback port, and the openai client that talks to it."""

    def __init__(self, engine: Engine, client: AsyncOpenAI, subject: _Subject) -> None:
        self._subject = subject
        self._engine = engine
        self._client = client

    async def ask(self, *, num_others: int) -> _Run:
        """Streams our completion while so many others run; theirs start first, so that ours joins a full house."""
        preemptions = self._engine.stats().preemptions
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as crowd:
            others = [crowd.create_task(self._stream(f"Somebody else asks about something else, number {n}. ")) for n in range(num_others)]
            ours = crowd.create_task(self._stream(self._subject.prompt))
        elapsed_s = time.monotonic() - started_s
        text, own_s = ours.result()
        return _Run(
            text=text,
            tokens_per_s=NUM_TOKENS / own_s,
            total_tokens_per_s=NUM_TOKENS * (1 + len(others)) / elapsed_s,
            preemptions=self._engine.stats().preemptions - preemptions,
        )

    async def _stream(self, prompt: str) -> tuple[str, float]:
        """The text, of NUM_TOKENS tokens because none can end it, and the seconds that it took."""
        started_s = time.monotonic()
        chunks = await self._client.completions.create(
            model=self._engine.name,
            prompt=prompt,
            max_tokens=NUM_TOKENS,
            temperature=0.0,
            logit_bias={str(token_id): int(bias) for token_id, bias in self._subject.bias.items()},
            stream=True,
        )
        text = "".join([chunk.choices[0].text async for chunk in chunks if chunk.choices])
        return text, time.monotonic() - started_s


@asynccontextmanager
async def _served(subject: _Subject, config: EngineConfig) -> AsyncIterator[_Server]:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    from tripod.engine.engine import Engine
    from tripod.serving.app import build_app
    from tripod.serving.server import bind, serve

    listener = bind("127.0.0.1", 0)
    async with Engine.load(str(subject.folder), config=config) as engine:
        server = asyncio.create_task(serve(build_app(engine), listener, drain_s=1.0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        http_client = DefaultAsyncHttpxClient(trust_env=False)  # a proxy is not meant for a server on this machine
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http_client) as client:
            try:
                yield _Server(engine, client, subject)
            finally:
                server.cancel()
                await asyncio.gather(server, return_exceptions=True)
