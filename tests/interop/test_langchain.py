"""LangChain's own suites on what is made of ours, and an agent and a flow of ours on what is LangChain's."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import tripod
from tests.interop.rooms import PRICES, SCHEMA, price
from tripod.agents.context import Context
from tripod.chat.scripted import ScriptedModel
from tripod.interop.langchain import from_retriever, from_runnable, from_tool, to_retriever, to_tool
from tripod.messages import ToolCall

pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import ToolException, tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests


@tool
def convert(crowns: float) -> str:
    """Change crowns into euros."""
    if crowns < 0:
        raise ToolException("no such amount")
    return f"{crowns / 10} euros"


class TestOurRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _index(self, index: tripod.Index) -> None:
        self.index = index

    @property
    def retriever_constructor(self) -> Any:
        return to_retriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"search": self.index.search}

    @property
    def retriever_query_example(self) -> str:
        return "the wrapper waits for the server"


class _OurTool:
    @property
    def tool_constructor(self) -> Any:
        return to_tool(price, deps=PRICES)

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"item": "lamp", "amount": 2}


class TestOurToolsForm(_OurTool, ToolsUnitTests):
    pass


class TestOurTool(_OurTool, ToolsIntegrationTests):
    pass


def test_a_tool_error_is_langchains() -> None:
    ours = to_tool(price, deps=PRICES)
    assert ours.invoke({"item": "lamp", "amount": 2}) == "80"
    with pytest.raises(ToolException, match="there is no chair"):
        ours.invoke({"item": "chair"})


def test_an_agent_of_ours_calls_a_langchain_tool_and_is_told_what_it_raises() -> None:
    script = [ToolCall("1", "convert", '{"crowns": 50}'), ToolCall("2", "convert", '{"crowns": -1}'), "done"]
    result = tripod.run(tripod.Agent(ScriptedModel(script), [from_tool(convert)])("How much?"))
    assert [message.text for message in result.messages if message.role == "tool"] == [
        "5.0 euros",
        "Error: convert failed: ToolException: no such amount",
    ]
    assert from_tool(convert).spec.parameters["properties"] == {"crowns": {"type": "number"}}


def test_a_langchain_tool_is_not_waited_for_beyond_its_limit() -> None:
    @tool
    async def forever() -> str:
        """Hang."""
        await anyio.sleep_forever()
        return ""

    with pytest.raises(TimeoutError):
        tripod.run(from_tool(forever, timeout_s=0.01).call({}, Context(None)))


def test_a_tool_there_and_back_is_the_same_tool() -> None:
    back = from_tool(to_tool(price, deps=PRICES))
    assert (back.spec.name, back.spec.parameters) == ("price", SCHEMA)
    assert tripod.run(back.call({"item": "lamp"}, Context(None))) == "40"


def test_a_passage_there_and_back_is_the_same_passage(index: tripod.Index) -> None:
    [ours] = tripod.run(index.search("sync", k=1))
    [back] = tripod.run(from_retriever(to_retriever(index.search, k=1))("sync"))
    assert (back.id, back.text, back.metadata["year"]) == (ours.id, ours.text, 2020)


@pytest.mark.parametrize("metadata", [{"source": "a.md", "tags": ["x"]}, {"start_index": 0}, {}])
def test_chunks_whose_places_nobody_knows_are_not_taken_for_one(metadata: dict[str, Any]) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(text, metadata=metadata) for text in ("one", "two")])
    found = tripod.run(from_retriever(store.as_retriever())("one"))
    assert sorted(passage.text for passage in found) == ["one", "two"]
    assert len({passage.id for passage in found}) == 2
    assert all(passage.source.startswith("a.md#" if "source" in metadata else "") for passage in found)
    assert all("tags" not in passage.metadata for passage in found)  # an index could not hold a list


def test_a_chain_is_a_step_whose_types_a_flow_checks() -> None:
    def shout(text: str) -> str:
        return text.upper()

    def count(shout: int) -> int:
        return shout

    chain = RunnableLambda(shout) | RunnableLambda(str.strip)
    step = from_runnable(chain, name="shout", returns=str)
    assert tripod.Flow(step).run(value=" hi ") == "HI"
    with pytest.raises(tripod.TripodError, match=r"str"):
        tripod.Flow(step, count)


def test_a_prompt_template_is_a_step() -> None:
    step = from_runnable(ChatPromptTemplate.from_messages([("user", "Say {word}")]))
    assert tripod.run(step({"word": "hi"})).to_string() == "Human: Say hi"
