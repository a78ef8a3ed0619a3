"""A Haystack pipeline on what is ours, and an agent and a flow of ours on what is Haystack's."""

from __future__ import annotations

import pytest

import tripod
from tests.interop.rooms import PRICES, SCHEMA, price
from tripod.agents.context import Context
from tripod.chat.scripted import ScriptedModel
from tripod.errors import ConfigError
from tripod.interop.haystack import from_component, from_retriever, from_tool, to_component, to_tool
from tripod.messages import ToolCall

pytest.importorskip("haystack", reason="haystack-ai is not installed")
from haystack import Document, Pipeline, component
from haystack.components.builders import PromptBuilder
from haystack.components.joiners import DocumentJoiner
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.retrievers import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.tools import tool


@tool
def convert(crowns: float) -> str:
    """Change crowns into euros."""
    if crowns < 0:
        raise ValueError("no such amount")
    return f"{crowns / 10} euros"


def test_a_pipeline_runs_our_search_and_feeds_it_to_its_components(index: tripod.Index) -> None:
    pipeline = Pipeline()
    pipeline.add_component("ours", to_component(index.search, k=2))
    pipeline.add_component("join", DocumentJoiner())
    pipeline.connect("ours.documents", "join.documents")
    [document] = pipeline.run({"ours": {"query": "sync", "top_k": 1}})["join"]["documents"]
    assert (document.meta["source"], document.meta["year"], document.meta["split_idx_start"]) == ("sync.md", 2020, 0)
    assert tripod.run(pipeline.run_async({"ours": {"query": "sync"}}))["join"]["documents"] == [document]


def test_a_component_is_a_step_with_its_own_inputs_types_and_defaults() -> None:
    def shout(builder: str) -> str:
        return builder.upper()

    step = from_component(PromptBuilder("Say {{ word }}", required_variables=["word"]), name="builder")
    flow = tripod.Flow(step, shout)
    assert "word: Any" in str(flow)
    assert flow.run(word="hi") == "SAY HI"


def test_a_variadic_input_is_a_list_and_one_of_several_outputs_can_be_the_result() -> None:
    one, two = Document(content="one"), Document(content="two")
    joined = tripod.run(from_component(DocumentJoiner())(documents=[[one], [one, two]]))
    assert sorted(document.content for document in joined) == ["one", "two"]

    @component
    class Halves:
        def warm_up(self) -> None:
            self.by = 2

        @component.output_types(half=int, rest=int)
        def run(self, number: int) -> dict[str, int]:
            return {"half": number // self.by, "rest": number % self.by}

    assert tripod.run(from_component(Halves(), output="rest")(number=7)) == 1
    assert tripod.run(from_component(Halves())(number=7)) == {"half": 3, "rest": 1}


def test_what_is_no_component_or_has_no_such_output_is_refused() -> None:
    with pytest.raises(ConfigError, match="no Haystack component"):
        from_component(len)
    with pytest.raises(ConfigError, match="no output 'answer'; it has prompt"):
        from_component(PromptBuilder("x"), output="answer")
    with pytest.raises(ConfigError, match="no query; give a retriever that embeds"):
        from_retriever(InMemoryEmbeddingRetriever(InMemoryDocumentStore()))


@pytest.mark.parametrize("meta", [{"file_path": "guide.md"}, {}])
def test_a_retriever_is_a_search_that_knows_where_its_chunks_stood(meta: dict[str, str]) -> None:
    text = "The retry wrapper waits as long as it must. A sync compares the folder with the index. Blocks are freed at the end."
    document = Document(content=text, meta=meta)
    store = InMemoryDocumentStore()
    store.write_documents(DocumentSplitter(split_by="period", split_length=1).run([document])["documents"])
    [found] = tripod.run(from_retriever(InMemoryBM25Retriever(store))("what does a sync compare", k=1))
    assert found.source == meta.get("file_path", document.id)
    assert found.text == text[found.start : found.end] == " A sync compares the folder with the index."


def test_an_agent_of_ours_calls_a_haystack_tool_and_is_told_what_it_raises() -> None:
    script = [ToolCall("1", "convert", '{"crowns": 50}'), ToolCall("2", "convert", '{"crowns": -1}'), "done"]
    result = tripod.run(tripod.Agent(ScriptedModel(script), [from_tool(convert)])("How much?"))
    [right, wrong] = [message.text for message in result.messages if message.role == "tool"]
    assert right == "5.0 euros"
    assert "no such amount" in wrong


def test_a_tool_there_and_back_is_the_same_tool() -> None:
    theirs = to_tool(price, deps=PRICES)
    assert theirs.tool_spec == {"name": "price", "description": "What so many of an item cost.", "parameters": SCHEMA}
    assert theirs.invoke(item="lamp", amount=2) == "80"
    assert tripod.run(from_tool(theirs).call({"item": "lamp"}, Context(None))) == "40"


def test_a_passage_there_and_back_is_the_same_passage(index: tripod.Index) -> None:
    [ours] = tripod.run(index.search("sync", k=1))
    [back] = tripod.run(from_retriever(to_component(index.search))("sync", k=1))
    assert (back.id, back.text, back.score) == (ours.id, ours.text, ours.score)
