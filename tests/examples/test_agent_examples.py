"""The examples around agents do their job with a script in the model's place, in as few lines as the job deserves."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tripod.chat.saved import load_messages
from tripod.chat.scripted import ScriptedModel
from tripod.errors import EngineError
from tripod.messages import ToolCall

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their types
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "function", "most"),
    [("agent_with_tools", "plan", 2), ("corrected_invoice", "read_invoice", 6), ("chat_with_memory", "talk", 5)],
)
def test_the_job_takes_no_more_lines_than_it_deserves(name: str, function: str, most: int) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef) and node.name == function]
    end = found.body[-1].end_lineno
    assert end is not None
    assert end - found.body[0].lineno + 1 <= most


def test_an_agent_with_tools_plans_a_trip() -> None:
    example = loaded("agent_with_tools")
    answer = '{"city": "Oslo", "hotel": "Harbour Inn", "nights": 2, "euros": 256.41}'
    calls = (ToolCall("1", "search", '{"city": "Oslo"}'), ToolCall("2", "convert", '{"crowns": 3000}'))
    model = ScriptedModel([calls, ToolCall("3", "answer", answer)])
    assert asyncio.run(example.plan(model, "Oslo, two nights")) == example.Trip("Oslo", "Harbour Inn", 2, 256.41)
    hotels, euros = model.prompts[1].messages[2:]
    assert hotels.text == '{"Harbour Inn":1500.0,"Palace":3900.0}'
    assert euros.text == "256.41"  # 3000 / 11.7


def test_an_invoice_is_corrected_until_it_adds_up() -> None:
    example = loaded("corrected_invoice")
    lines = [{"name": "rope", "price": 2.5}, {"name": "tar", "price": 4}]
    wrong, right = (json.dumps({"lines": lines, "total": total}) for total in (7, 6.5))
    model = ScriptedModel([wrong, "sorry", right])
    assert asyncio.run(example.read_invoice(model, "rope 2.50, tar 4.00")).total == 6.5
    assert "the lines add up to 6.50, and the total says 7.00" in model.prompts[1].messages[-1].text
    with pytest.raises(EngineError, match="no answer of 4 was a Invoice"):
        asyncio.run(example.read_invoice(ScriptedModel([wrong] * 4), "rope"))


def test_a_conversation_is_remembered_from_one_run_to_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = loaded("chat_with_memory")
    file = tmp_path / "talk.jsonl"
    asyncio.run(example.talk(ScriptedModel(["Hello Ada."]), str(file), "My name is Ada."))
    model = ScriptedModel(["Ada."])
    asyncio.run(example.talk(model, str(file), "What is my name?"))
    assert capsys.readouterr().out == "Hello Ada.Ada."
    assert [message.text for message in model.prompts[0].messages] == ["My name is Ada.", "Hello Ada.", "What is my name?"]
    assert [message.text for message in load_messages(file)][-1] == "Ada."
