"""Tool calls on the Berkeley Function-Calling Leaderboard, over HTTP, with whatever model is at hand.

    python -m benchmarks.campaigns bfcl [--data FOLDER] [--model PATH ...] [--cases N] [--max-tokens 512] [--seed 0]

FOLDER holds bfcl (1,040 questions with their functions and accepted answers) and stories260K. Without --model two models are asked that
cannot know an answer, with 8,192 tokens of context: stories260K, far beyond the 512 that it was trained on, and one of random weights. The
promise holds for any model: every call that ends by itself is valid by its schema (`jsonschema` judges), and what cannot be enforced is
refused with 400 before anything is generated. The share that ends and the accuracy, by the leaderboard's rules, are reported.

Questions of one function, or of a choice of several, are asked with tool_choice "required" and one call; those of the parallel part with
as many calls as the model likes; those without a fitting function with "auto", where no call is the right answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from benchmarks.campaigns.served_model import STORIES, tiny_model
from benchmarks.setting import RESULTS, setting
from benchmarks.shared_data import DATA
from tripod.engine.engine import Engine, EngineConfig
from tripod.models.language_model import LanguageModel
from tripod.models.llama import Llama
from tripod.models.llama2c import load_llama2c
from tripod.models.load import load_language_model
from tripod.serving.app import build_app
from tripod.text.load_tokenizer import load_tokenizer

PARTS = ("simple_python", "multiple", "parallel", "irrelevance")
_POSITIONS = 8192
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # Python's names, as the leaderboard writes them


@dataclass(slots=True, kw_only=True)
class Case:
    """One question."""

    id: str
    part: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    accepted: list[dict[str, dict[str, list[Any]]]] | None  # calls in any order, each argument with its accepted values; None: no call


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it."""

    id: str
    part: str
    refused: str | None = None  # why it was answered with 400
    num_calls: int = 0
    is_finished: bool = False
    is_correct: bool = False
    failures: list[str] = field(default_factory=list)  # empty if the promise held


def read_cases(folder: Path) -> list[Case]:
    cases = []
    for part in PARTS:
        answers = folder / "possible_answer" / f"BFCL_v4_{part}.json"
        accepted = {row["id"]: row["ground_truth"] for row in _rows(answers)} if answers.is_file() else {}
        for row in _rows(folder / f"BFCL_v4_{part}.json"):
            functions = [{**function, "parameters": _schema(function["parameters"])} for function in row["function"]]
            tools = [{"type": "function", "function": function} for function in functions]
            cases.append(Case(id=row["id"], part=part, messages=row["question"][0], tools=tools, accepted=accepted.get(row["id"])))
    return cases


def _rows(file: Path) -> Iterator[Any]:
    return (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The same in the words of JSON schema. "any" says nothing, and "optional" is what "required" leaves out."""
    kind = schema.get("type")
    known = {key: value for key, value in schema.items() if key not in ("type", "optional")}
    if kind != "any":
        known["type"] = _TYPES.get(kind, kind) if isinstance(kind, str) else kind
    if "properties" in schema:
        known["properties"] = {name: _schema(value) for name, value in schema["properties"].items()}
    if "items" in schema:
        known["items"] = _schema(schema["items"])
    return known


def is_accepted(calls: Sequence[tuple[str, Any]], accepted: Sequence[dict[str, dict[str, list[Any]]]] | None) -> bool:
    """By the leaderboard's rules: the same functions, in any order, every argument with an accepted value; "" may be left out."""
    if accepted is None:
        return not calls
    waiting = list(accepted)
    for name, arguments in calls:
        found = next((one for one in waiting if name in one and _fits(arguments, one[name])), None)
        if found is None:
            return False
        waiting.remove(found)
    return not waiting


def _fits(arguments: dict[str, Any], accepted: dict[str, list[Any]]) -> bool:
    return arguments.keys() <= accepted.keys() and all(
        arguments[name] in values if name in arguments else "" in values for name, values in accepted.items()
    )


async def ask(client: httpx.AsyncClient, model: str, case: Case, seed: int, max_tokens: int) -> Outcome:
    """Every other question is streamed."""
    outcome = Outcome(id=case.id, part=case.part)
    body = {
        "model": model,
        "messages": case.messages,
        "tools": case.tools,
        "tool_choice": "auto" if case.part == "irrelevance" else "required",
        "parallel_tool_calls": case.part == "parallel",
        "max_tokens": max_tokens,
        "seed": seed,
        "stream": seed % 2 == 1,
    }
    response = await client.post("/chat/completions", json=body)
    if response.status_code != 200:
        outcome.refused = _reason(response)
        if response.status_code != 400:
            outcome.failures.append(f"answered {response.status_code}: {response.text[:200]}")
        return outcome
    reason, calls = _streamed(response.text) if body["stream"] else _whole(response.json())
    outcome.num_calls = len(calls)
    outcome.is_finished = reason in ("tool_calls", "stop")
    if reason not in ("tool_calls", "stop", "length"):
        outcome.failures.append(f"ended by {reason}")
    if outcome.is_finished and body["tool_choice"] == "required" and not calls:
        outcome.failures.append("ended without a call")
    if outcome.is_finished:
        outcome.failures += [failure for call in calls if (failure := _failure(case, *call)) is not None]
        if not outcome.failures:
            outcome.is_correct = is_accepted([(name, json.loads(arguments)) for name, arguments in calls], case.accepted)
    return outcome


def _reason(response: httpx.Response) -> str:
    error = response.json().get("error", {})
    return str(error.get("code") or error.get("message", response.text))[:200]


def _whole(body: Any) -> tuple[str, list[tuple[str, str]]]:
    choice = body["choices"][0]
    calls = choice["message"].get("tool_calls") or []
    return choice["finish_reason"], [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def _streamed(text: str) -> tuple[str, list[tuple[str, str]]]:
    reason = "none"
    calls: dict[int, tuple[str, str]] = {}
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "choices" not in chunk:
            return "error", []
        choice = chunk["choices"][0]
        reason = choice["finish_reason"] or reason
        for piece in choice["delta"].get("tool_calls") or ():
            name, arguments = calls.get(piece["index"], ("", ""))
            function = piece["function"]
            calls[piece["index"]] = (name + function.get("name", ""), arguments + function["arguments"])
    return reason, [calls[index] for index in sorted(calls)]


def _failure(case: Case, name: str, arguments: str) -> str | None:
    tool = next((tool["function"] for tool in case.tools if tool["function"]["name"] == name), None)
    if tool is None:
        return f"calls {name!r}, which was not offered"
    try:
        value = json.loads(arguments)
    except ValueError as error:
        return f"{name} has no JSON: {error}; {arguments[:200]!r}"
    errors = [error.message[:200] for error in Draft202012Validator(tool["parameters"]).iter_errors(value)]
    return f"{name} is not valid: {errors[0]}; {arguments[:200]!r}" if errors else None


async def run(engine: Engine, cases: Sequence[Case], *, seed: int, max_tokens: int) -> list[Outcome]:
    """Asks all, as many at once as the engine runs."""
    transport = httpx.ASGITransport(app=build_app(engine, chat_template="plain" if engine.tokenizer.chat_template is None else None))
    outcomes: dict[int, Outcome] = {}
    waiting = iter(list(enumerate(cases)))
    async with httpx.AsyncClient(transport=transport, base_url="http://campaign/v1", timeout=600.0) as client:

        async def worker() -> None:
            for number, case in waiting:
                outcomes[number] = await ask(client, engine.name, case, seed + number, max_tokens)

        await asyncio.gather(*(worker() for _ in range(engine.config.max_num_requests)))
    return [outcomes[number] for number in range(len(cases))]


def table(outcomes: Sequence[Outcome]) -> str:
    lines = ["| part | questions | refused | ended | calls in these | invalid | correct |", "|---|---:|---:|---:|---:|---:|---:|"]
    for part in [*PARTS, "all"]:
        of_it = [outcome for outcome in outcomes if part in (outcome.part, "all")]
        ended = [outcome for outcome in of_it if outcome.is_finished]
        if of_it:
            lines.append(
                f"| {part} | {len(of_it)} | {sum(outcome.refused is not None for outcome in of_it)} "
                f"| {len(ended)} ({len(ended) / len(of_it):.1%}) | {sum(outcome.num_calls for outcome in ended)} "
                f"| {sum(len(outcome.failures) for outcome in of_it)} "
                f"| {sum(outcome.is_correct for outcome in of_it)} ({sum(outcome.is_correct for outcome in of_it) / len(of_it):.1%}) |"
            )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns bfcl", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collections (default: %(default)s)")
    parser.add_argument("--model", type=Path, action="append", help="a checkpoint's folder, instead of the two that know nothing")
    parser.add_argument("--cases", type=int, help="of each part; all without it")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = options.data / "bfcl"
    if not folder.is_dir():
        print(f"not measured: there is no {folder}")
        return 2
    cases = read_cases(folder)
    if options.cases is not None:
        cases = [case for part in PARTS for case in [case for case in cases if case.part == part][: options.cases]]
    RESULTS.mkdir(exist_ok=True)
    num_failed = 0
    with tempfile.TemporaryDirectory(prefix="tripod-bfcl-") as name, (RESULTS / "bfcl.jsonl").open("w", encoding="utf-8") as log:
        log.write(json.dumps(setting("benchmarks.campaigns", ["llguidance", "jsonschema", "torch"])) + "\n")
        stories = [STORIES] if STORIES.is_file() else []
        for path in options.model or [*stories, tiny_model(Path(name) / "random-weights", max_positions=_POSITIONS)]:
            outcomes = asyncio.run(_run(path, cases, options))
            log.writelines(json.dumps({"model": path.name, **asdict(outcome)}, ensure_ascii=False) + "\n" for outcome in outcomes)
            print(f"\n{path.name}\n{table(outcomes)}")
            refusals = Counter(outcome.refused for outcome in outcomes if outcome.refused is not None)
            print("refused:", "; ".join(f"{count} x {reason}" for reason, count in refusals.most_common(8)) or "none")
            failures = [f"{outcome.id}: {failure}" for outcome in outcomes for failure in outcome.failures]
            print(*failures[:20], sep="\n")
            num_failed += len(failures) + (not any(outcome.is_finished and outcome.num_calls for outcome in outcomes))
    return 1 if num_failed else 0


async def _run(path: Path, cases: Sequence[Case], options: argparse.Namespace) -> list[Outcome]:
    model: LanguageModel = _stretched(load_llama2c(path)) if path.suffix == ".bin" else load_language_model(path)
    tokenizer = load_tokenizer(path if path.is_dir() else path.parent)
    async with Engine(model, tokenizer, EngineConfig(max_num_requests=16), name=path.name) as engine:
        return await run(engine, cases, seed=options.seed, max_tokens=options.max_tokens)


def _stretched(model: Llama) -> Llama:
    """The same weights at positions that they were not trained on."""
    longer = Llama(replace(model.config, max_positions=_POSITIONS))
    longer.load_state_dict(model.state_dict())
    return longer.eval()
