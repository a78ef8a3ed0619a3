"""LlamaIndex's tools and retrievers as ours, and ours as its. Extra `llamaindex`.

A model needs no wrapper: `tripod serve` speaks OpenAI's API, so LlamaIndex's `OpenAILike(api_base="http://127.0.0.1:8000/v1", ...)` is one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tripod import bridge
from tripod.agents.tool import as_tool
from tripod.documents import Passage
from tripod.errors import MissingExtraError, ToolError
from tripod.interop.passages import Search, passage_of, told_of
from tripod.interop.tools import TIMEOUT_S, ForeignTool, caller, foreign_tool

if TYPE_CHECKING:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle
    from llama_index.core.tools import BaseTool, FunctionTool

    from tripod.protocols import Tool


def from_tool(tool: BaseTool, *, timeout_s: float | None = TIMEOUT_S) -> ForeignTool:
    """A LlamaIndex tool, for `Agent(model, [from_tool(theirs)])`. An output that is marked as an error is a `ToolError`."""
    from llama_index.core.tools.types import adapt_to_async_tool

    theirs = adapt_to_async_tool(tool)

    async def call(arguments: dict[str, Any]) -> str:
        output = await theirs.acall(**arguments)
        if output.is_error:
            raise ToolError(output.content or f"{tool.metadata.name} failed")
        return str(output.content)

    return foreign_tool(tool.metadata.get_name(), tool.metadata.description, tool.metadata.get_parameters_dict(), call, timeout_s)


def from_retriever(retriever: BaseRetriever) -> Callable[..., Awaitable[list[Passage]]]:
    """A LlamaIndex retriever as a search: to fuse, to rerank, as a step of a flow, or as a tool."""

    async def search(question: str, k: int = 10) -> list[Passage]:
        """Find passages that have to do with a question."""
        return [_passage(one) for one in await retriever.aretrieve(question)][:k]

    return search


def to_tool(tool: Tool | Callable[..., Any], *, deps: Any = None) -> FunctionTool:
    """Our tool, function or agent as a LlamaIndex tool.

    Args:
        deps: what the tool's `Context` holds.
    """
    _expect_llamaindex()
    from llama_index.core.tools import FunctionTool, ToolMetadata
    from pydantic import BaseModel, ConfigDict

    ours = as_tool(tool)
    call = caller(ours, deps)

    class Arguments(BaseModel):  # LlamaIndex asks a model for the schema; ours is one already
        model_config = ConfigDict(extra="allow")

        @classmethod
        def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
            return dict(ours.spec.parameters)

    def function(**arguments: Any) -> str:
        return bridge.run(call(**arguments))

    metadata = ToolMetadata(ours.spec.description, ours.spec.name, Arguments)
    return FunctionTool.from_defaults(function, async_fn=call, tool_metadata=metadata)


def to_retriever(search: Search, *, k: int = 4) -> BaseRetriever:
    """A search, such as `index.search`, as a LlamaIndex retriever. Without `await` it needs an index that `tripod.run` opened."""
    _expect_llamaindex()
    from llama_index.core.retrievers import BaseRetriever

    class TripodRetriever(BaseRetriever):  # type: ignore[misc]
        async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [_node(one) for one in await search(query_bundle.query_str, k=k)]

        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return bridge.run(self._aretrieve(query_bundle))

    return TripodRetriever()


def _passage(found: NodeWithScore) -> Passage:
    node = found.node
    source = node.metadata.get("file_path") or node.metadata.get("source") or node.ref_doc_id
    return passage_of(
        node.text, node.metadata, source=source, start=getattr(node, "start_char_idx", None), id=node.node_id, score=found.score
    )


def _node(passage: Passage) -> NodeWithScore:
    from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

    node = TextNode(
        id_=passage.id,
        text=passage.text,
        metadata=told_of(passage),
        start_char_idx=passage.start,
        end_char_idx=passage.end,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=passage.source)},
    )
    return NodeWithScore(node=node, score=passage.score)


def _expect_llamaindex() -> None:
    if find_spec("llama_index") is None:
        raise MissingExtraError("llama-index-core", "llamaindex", "what LlamaIndex is given of ours")
