"""A trace is written, read, shown as lines, as a page, and given to OpenTelemetry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.cli.conftest import tripod as tripod
from tripod import trace
from tripod.errors import ConfigError
from tripod.messages import Usage
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.seeing.page import page
from tripod.seeing.trace_file import read_trace, write_trace
from tripod.trace import Span, recording, span

MODEL = Span("model", 10.1, 0.3, {"prompt": Prompt.of("Why <b>?"), "usage": Usage(prompt_tokens=7, completion_tokens=3), "model": "tiny"})
TOOL = Span("tool", 10.5, 0.1, {"name": "search", "error": "TimeoutError: no answer"})
AGENT = Span("agent", 10.0, 1.0, {"name": "helper", "usage": Usage(prompt_tokens=7, completion_tokens=3)}, (MODEL, TOOL))


def test_spans_go_through_a_file_as_what_json_knows(tmp_path: Path) -> None:
    write_trace(tmp_path / "run.jsonl", [AGENT, TOOL])
    agent, tool = read_trace(tmp_path / "run.jsonl")
    assert [one.name for one in agent.walk()] == ["agent", "model", "tool"]
    assert agent.children[0].attributes == {
        "prompt": "[user]\nWhy <b>?",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 0},
        "model": "tiny",
    }
    assert tool == TOOL
    (tmp_path / "other.jsonl").write_text("[1]\n")
    with pytest.raises(ConfigError, match=r"other.jsonl is no trace"):
        read_trace(tmp_path / "other.jsonl")


def test_any_text_goes_through_a_file(tmp_path: Path) -> None:
    texts = ["one\u2028line \x85 and \x0b\r\nmore", "half a character: \ud83d"]
    write_trace(tmp_path / "run.jsonl", [Span("a", 0.0, 1.0, {"said": text}) for text in texts])
    assert [one.attributes["said"] for one in read_trace(tmp_path / "run.jsonl")] == texts


def test_the_page_is_a_timeline_without_scripts_whose_bars_stand_where_the_spans_did() -> None:
    text = page([AGENT], "a run")
    bars = [(float(left), float(width)) for left, width in re.findall(r'style="left:([\d.]+)%;width:([\d.]+)%"', text)]
    assert bars == [(0, 100), (pytest.approx(10), pytest.approx(30)), (pytest.approx(50), pytest.approx(10))]
    assert "agent: 1 s, 3 spans, 7 tokens in, 3 out" in text  # those of the model, which the agent's own sum repeats
    assert "Why &lt;b&gt;?" in text
    assert '<span class="lane bad">' in text
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(text)
    assert not {"script", "link", "img"} & set(tags)
    assert tags.count("details") == 3


def test_the_terminal_shows_every_span_below_its_parent(tripod: Command, tmp_path: Path) -> None:
    write_trace(tmp_path / "run.jsonl", [AGENT])
    out = tripod("trace", "show", tmp_path / "run.jsonl").out.splitlines()
    assert out[0] == "agent helper  1 s  7 + 3 tokens"
    assert "  model  300 ms  7 + 3 tokens" in out
    assert "    prompt: [user] Why <b>?" in out
    assert "  tool search  100 ms" in out
    assert tripod("trace", "show", tmp_path / "run.jsonl", "--html", tmp_path / "run.html").code == 0
    assert (tmp_path / "run.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.fixture
def exported() -> Iterator[list[Any]]:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace as otel
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otel, "get_tracer", provider.get_tracer)
        yield exporter.get_finished_spans  # type: ignore[misc]


def test_one_line_sends_every_run_to_opentelemetry_by_its_conventions(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tripod.seeing.opentelemetry import send

    monkeypatch.setattr(trace, "listeners", [send])
    trace.attach(AGENT)
    sent = {one.name: one for one in exported()}
    assert set(sent) == {"agent helper", "model", "tool search"}
    model, tool, agent = sent["model"], sent["tool search"], sent["agent helper"]
    assert model.parent.span_id == tool.parent.span_id == agent.context.span_id
    assert model.attributes["gen_ai.operation.name"] == "chat"
    assert (model.attributes["gen_ai.usage.input_tokens"], model.attributes["gen_ai.usage.output_tokens"]) == (7, 3)
    assert (model.attributes["gen_ai.response.model"], model.attributes["tripod.prompt"]) == ("tiny", "[user]\nWhy <b>?")
    assert (tool.attributes["gen_ai.tool.name"], tool.attributes["error.type"], tool.status.status_code.name) == (
        "search",
        "TimeoutError",
        "ERROR",
    )
    assert (agent.attributes["gen_ai.operation.name"], agent.attributes["gen_ai.agent.name"]) == ("invoke_agent", "helper")
    assert agent.end_time - agent.start_time == pytest.approx(1e9, rel=1e-6)
    assert model.start_time - agent.start_time == pytest.approx(1e8, rel=1e-5)


def test_parameters_and_cached_tokens_have_the_names_that_the_conventions_give_them() -> None:
    names = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    from tripod.seeing.opentelemetry import conventional

    reply = {"usage": Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=5), "finish_reason": "length"}
    sampling = SamplingParams(temperature=0.0, seed=4, stop=("END",), max_tokens=9)
    told = conventional(Span("model", 0.0, 1.0, {"reply": reply, "sampling": sampling}))
    assert {name: value for name, value in told.items() if name.startswith("gen_ai")} == {
        names.GEN_AI_OPERATION_NAME: names.GenAiOperationNameValues.CHAT.value,
        names.GEN_AI_REQUEST_TEMPERATURE: 0.0,
        names.GEN_AI_REQUEST_TOP_P: 1.0,
        names.GEN_AI_REQUEST_TOP_K: 0,
        names.GEN_AI_REQUEST_MAX_TOKENS: 9,
        names.GEN_AI_REQUEST_SEED: 4,
        names.GEN_AI_REQUEST_STOP_SEQUENCES: ["END"],
        names.GEN_AI_REQUEST_PRESENCE_PENALTY: 0.0,
        names.GEN_AI_REQUEST_FREQUENCY_PENALTY: 0.0,
        names.GEN_AI_RESPONSE_FINISH_REASONS: ["length"],
        names.GEN_AI_USAGE_INPUT_TOKENS: 7,
        names.GEN_AI_USAGE_OUTPUT_TOKENS: 3,
        names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: 5,
    }


def test_spans_nest_across_functions_and_what_nobody_holds_is_recent() -> None:
    def inner() -> None:
        with span("inner", k=1) as attributes:
            attributes["found"] = 2

    with recording() as spans, span("outer"):
        inner()
    assert [one.name for one in spans[0].walk()] == ["outer", "inner"]
    assert spans[0].children[0].attributes == {"k": 1, "found": 2}
    inner()
    assert trace.recent[-1].name == "inner"
    with pytest.raises(ValueError, match="given 3"), recording() as spans, span("fails"):
        raise ValueError("given 3")
    assert spans[0].attributes["error"] == "ValueError: given 3"
