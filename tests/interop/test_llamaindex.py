"""LlamaIndex's classes on what is ours, and an agent and a search of ours on what is LlamaIndex's."""

from __future__ import annotations

import pytest

import tripod
from tests.interop.rooms import PRICES, SCHEMA, price
from tripod.agents.context import Context
from tripod.chat.scripted import ScriptedModel
from tripod.errors import ToolError
from tripod.interop.llamaindex import from_retriever, from_tool, to_retriever, to_tool
from tripod.messages import ToolCall

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.tools import BaseTool, FunctionTool, RetrieverTool, ToolMetadata, ToolOutput


def convert(crowns: float) -> str:
    """Change crowns into euros."""
    if crowns < 0:
        raise ValueError("no such amount")
    return f"{crowns / 10} euros"


def test_a_query_engine_reads_what_our_search_finds(index: tripod.Index) -> None:
    engine = RetrieverQueryEngine(to_retriever(index.search, k=1), get_response_synthesizer(MockLLM()))  # type: ignore[arg-type]
    [found] = engine.query("sync").source_nodes
    assert (found.node.ref_doc_id, found.node.metadata["year"], found.node.start_char_idx) == ("sync.md", 2020, 0)
    assert [one.node_id for one in tripod.run(engine.aquery("sync")).source_nodes] == [found.node_id]


def test_a_retriever_is_a_search_that_knows_where_its_nodes_stood() -> None:
    text = "The wrapper waits. " * 40
    document = Document(text=text, metadata={"file_path": "guide.md"})
    theirs = VectorStoreIndex.from_documents(
        [document], embed_model=MockEmbedding(embed_dim=4), transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0)]
    )
    found = tripod.run(from_retriever(theirs.as_retriever(similarity_top_k=3))("wait", k=2))
    assert len(found) == 2
    assert all(passage.source == "guide.md" and text[passage.start : passage.end] == passage.text for passage in found)


def test_an_agent_of_ours_calls_a_llamaindex_tool_and_is_told_what_it_raises() -> None:
    script = [ToolCall("1", "convert", '{"crowns": 50}'), ToolCall("2", "convert", '{"crowns": -1}'), "done"]
    tools = [from_tool(FunctionTool.from_defaults(convert))]
    result = tripod.run(tripod.Agent(ScriptedModel(script), tools)("How much?"))
    assert [message.text for message in result.messages if message.role == "tool"] == [
        "5.0 euros",
        "Error: convert failed: ValueError: no such amount",
    ]


def test_an_output_marked_as_an_error_is_an_error() -> None:
    class Refusing(BaseTool):
        metadata = ToolMetadata("Refuse.", "refuse")

        def __call__(self, input: str) -> ToolOutput:  # type: ignore[override]
            return ToolOutput(tool_name="refuse", content=f"no {input}", raw_input={}, is_error=True)

    with pytest.raises(ToolError, match="no chair"):
        tripod.run(from_tool(Refusing()).call({"input": "chair"}, Context(None)))


def test_a_retriever_tool_of_theirs_over_our_search_is_a_tool_of_ours(index: tripod.Index) -> None:
    theirs = RetrieverTool.from_defaults(to_retriever(index.search, k=1), name="look up", description="Search.")
    tool = from_tool(theirs)
    assert tool.spec.name == "look_up"
    assert "compares the folder" in tripod.run(tool.call({"input": "sync"}, Context(None)))


def test_a_tool_there_and_back_is_the_same_tool() -> None:
    theirs = to_tool(price, deps=PRICES)
    parameters = {key: value for key, value in SCHEMA.items() if key != "additionalProperties"}  # LlamaIndex leaves it out
    assert theirs.metadata.to_openai_tool()["function"] == {
        "name": "price",
        "description": "What so many of an item cost.",
        "parameters": parameters,
    }
    assert theirs(item="lamp", amount=2).content == "80"
    assert tripod.run(from_tool(theirs).call({"item": "lamp"}, Context(None))) == "40"


def test_a_passage_there_and_back_is_the_same_passage(index: tripod.Index) -> None:
    [ours] = tripod.run(index.search("sync", k=1))
    [back] = tripod.run(from_retriever(to_retriever(index.search))("sync", k=1))
    assert (back.id, back.text, back.score) == (ours.id, ours.text, ours.score)
