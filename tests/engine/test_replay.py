"""A logged run can be done again; the first step that differs is named; and what it was done with makes no difference where it must not."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import PROMPTS
from tests.engine.tiny_models import NEOX, QWEN, tiny_model
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.replay import LoggedRun, replay
from tripod.errors import ConfigError, DeadlineError
from tripod.sampling import Grammar, SamplingParams
from tripod.text.tokenizer import Tokenizer

CONFIG = EngineConfig(kv_tokens=160, max_batch_tokens=30, max_num_requests=6)  # chunks and preemptions


async def _eventful(engine: Engine) -> None:
    """Seeds given and drawn, penalties, an abort, a stop string, a reader that leaves; a grammar, tenants, priorities, a deadline."""
    shaped = SamplingParams(
        temperature=0.8, top_k=40, top_p=0.9, frequency_penalty=0.4, logit_bias={70: 2.0}, max_tokens=40, ignore_eos=True
    )
    tasks = [
        asyncio.create_task(engine.generate(prompt, replace(shaped, seed=None if i % 2 else i))) for i, prompt in enumerate(PROMPTS[:8])
    ]
    first = await engine.generate("start", SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))
    tasks.append(asyncio.create_task(engine.generate("start", SamplingParams(temperature=0.0, max_tokens=12, stop=(first.text[3:5],)))))
    held = SamplingParams(temperature=1.0, seed=5, max_tokens=20, grammar=Grammar("regex", "(yes|no)( (yes|no)){3}"))
    tasks += [asyncio.create_task(engine.generate("start, and go on", held, tenant=tenant, priority=1)) for tenant in ("a", "b")]
    with pytest.raises(DeadlineError):
        await engine.generate("too late", replace(shaped, max_tokens=120), timeout_s=0.02)
    leaving = engine.stream("leaving", replace(shaped, max_tokens=100))
    await anext(leaving)
    await leaving.aclose()
    tasks.append(asyncio.create_task(engine.generate("to be aborted", replace(shaped, max_tokens=100), request_id="aborted")))
    await asyncio.sleep(0.01)
    engine.abort("aborted")
    await asyncio.gather(*tasks)
    for _ in range(2):  # the second finds the first one's block
        await engine.generate("twice the same beginning", replace(shaped, max_tokens=4))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("replay") / "run.jsonl"

    async def main() -> None:
        async with Engine(tiny_model(NEOX), tokenizer, replace(CONFIG, log=path), name="tiny") as engine:
            await _eventful(engine)
            assert engine.stats().preemptions > 0
            assert sum(step.num_cached_tokens for step in engine.recent_steps()) > 0

    asyncio.run(main())
    return path


def test_a_run_done_again_gives_the_same_tokens_step_by_step(log: Path, tokenizer: Tokenizer) -> None:
    events = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    report = replay(LoggedRun.read(log), tiny_model(NEOX), tokenizer=tokenizer)
    assert (report.step, report.difference) == (None, "")
    assert report.num_steps == len(steps) > 20
    assert report.num_tokens == sum(len(tokens) for step in steps for tokens in step["tokens"].values())
    assert sum(event["event"] == "finish" for event in events) >= 4, "the abort, the stop string, the reader who left and the deadline"


def test_a_run_with_a_grammar_needs_the_tokenizer(log: Path) -> None:
    with pytest.raises(ConfigError, match="had a grammar, which is followed with the tokenizer"):
        replay(LoggedRun.read(log), tiny_model(NEOX))


@pytest.mark.parametrize(
    ("pattern", "replacement", "difference"),
    [
        (r'("tokens":\{"[^"]+":\[)\d+', r"\g<1>300", "output token"),
        (r'("schedule":\[\["[^"]+",)\d+', r"\g<1>29", "the schedule"),
        (r'"failed":\[\]', '"failed":["%s"]', "does not fail now"),
    ],
)
def test_the_first_step_that_differs_is_named(
    log: Path, tokenizer: Tokenizer, tmp_path: Path, pattern: str, replacement: str, difference: str
) -> None:
    lines = log.read_text().splitlines()
    step = 12
    at = next(number for number, line in enumerate(lines) if f'"event":"step","step":{step},' in line)
    if "%s" in replacement:
        replacement %= json.loads(lines[at])["schedule"][0][0]
    lines[at], num_changed = re.subn(pattern, replacement, lines[at], count=1)
    assert num_changed == 1
    changed = tmp_path / "changed.jsonl"
    changed.write_text("\n".join(lines))
    report = replay(LoggedRun.read(changed), tiny_model(NEOX), tokenizer=tokenizer)
    assert (report.step, report.num_steps) == (step, step)
    assert difference in report.difference


def test_other_weights_are_refused(log: Path) -> None:
    with pytest.raises(ConfigError, match="not the weights of the log"):
        replay(LoggedRun.read(log), tiny_model(NEOX, seed=4))
    with pytest.raises(ConfigError, match="not the weights of the log"):
        replay(LoggedRun.read(log), tiny_model(QWEN))


def test_a_log_that_ends_in_the_midst_of_a_line_is_replayed_up_to_there(log: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    cut.write_text(log.read_text()[:-200])
    report = replay(LoggedRun.read(cut), tiny_model(NEOX), tokenizer=tokenizer)
    assert report.step is None
    assert report.num_steps > 20


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(ConfigError, match="cannot be read"):
        LoggedRun.read(path)
    path.write_text('{"event":"add"}\n')
    with pytest.raises(ConfigError, match="is not a replay log"):
        LoggedRun.read(path)
    path.write_text('{"event":"start"\n{"event":"add"}\n')
    with pytest.raises(ConfigError, match="line 1, is not JSON"):
        LoggedRun.read(path)


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (0, "[]", "line 1, is not an event"),
        (0, '{"event": "start", "model": "m"}', "first line does not hold model, weights, dtype and config"),
        (1, '{"event": "add", "request": "r"}', "line 2, is an event 'add' without max_tokens, now, priority"),
        (2, '{"event": "step", "step": 0}', "line 3, is an event 'step' without committed, failed, planned, schedule, tokens"),
    ],
)
def test_a_line_that_does_not_hold_its_event_is_named(log: Path, tmp_path: Path, number: int, line: str, message: str) -> None:
    lines = log.read_text(encoding="utf-8").splitlines()
    lines[number] = line
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        LoggedRun.read(broken)


def test_a_log_that_cannot_be_written_is_refused_before_the_engine_starts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        Engine(tiny_model(NEOX), tokenizer, replace(CONFIG, log=tmp_path / "no" / "folder"), name="tiny")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is full, is Linux's")
def test_a_log_that_finds_the_disk_full_ends_and_no_request_with_it(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[str]:
        async with Engine(tiny_model(NEOX), tokenizer, replace(CONFIG, log=Path("/dev/full")), name="tiny") as engine:
            params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
            replies = await asyncio.gather(*(engine.generate(prompt, params) for prompt in PROMPTS[:3]))
            assert engine.stats().failed == 0
            return [reply.finish_reason for reply in replies]

    assert asyncio.run(main()) == ["length"] * 3
    assert caplog.text.count("cannot be written any further and ends here: No space left on device") == 1


def test_bfloat16_weights_are_hashed_by_their_bytes() -> None:
    from tripod.engine.replay_log import weights_hash

    model = tiny_model(NEOX)
    assert weights_hash(model) == weights_hash(tiny_model(NEOX)) != weights_hash(tiny_model(NEOX).to(torch.bfloat16))
