"""LangChain's tools, retrievers and runnables as ours, and ours as its. Extra `langchain`.

A model needs no wrapper: `tripod serve` speaks OpenAI's API, so `ChatOpenAI(base_url="http://127.0.0.1:8000/v1", ...)` is one.
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
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

    from tripod.protocols import Tool


def from_tool(tool: BaseTool, *, timeout_s: float | None = TIMEOUT_S) -> ForeignTool:
    """A LangChain tool, for `Agent(model, [from_tool(theirs)])`. What it raises, the model is told."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    spec = convert_to_openai_tool(tool)["function"]  # without the arguments that LangChain itself injects
    parameters = spec.get("parameters", {"type": "object", "properties": {}})
    return foreign_tool(tool.name, spec.get("description", ""), parameters, tool.ainvoke, timeout_s)


def from_retriever(retriever: BaseRetriever) -> Callable[..., Awaitable[list[Passage]]]:
    """A LangChain retriever as a search: to fuse, to rerank, as a step of a flow, or as a tool."""

    async def search(question: str, k: int = 10) -> list[Passage]:
        """Find passages that have to do with a question."""
        return [
            passage_of(one.page_content, one.metadata, start=one.metadata.get("start_index"), id=one.id)
            for one in await retriever.ainvoke(question)
        ][:k]

    return search


def from_runnable(
    runnable: Runnable[Any, Any], *, name: str | None = None, takes: Any = None, returns: Any = None
) -> Callable[[Any], Awaitable[Any]]:
    """A chain, or any other runnable, as an async function of one `value`, which is a step of a flow.

    Args:
        name: of the step; None: the runnable's.
        takes: the type of `value`, by which a flow checks its edges; None: what the runnable says.
        returns: the type of the result, likewise.
    """

    async def call(value: Any) -> Any:
        return await runnable.ainvoke(value)

    call.__name__ = name or runnable.get_name()
    call.__annotations__ = {"value": takes or _said(runnable, "InputType"), "return": returns or _said(runnable, "OutputType")}
    return call


def to_tool(tool: Tool | Callable[..., Any], *, deps: Any = None) -> BaseTool:
    """Our tool, function or agent as a LangChain tool. Our `ToolError` is its `ToolException`.

    Args:
        deps: what the tool's `Context` holds.
    """
    _expect_langchain()
    from langchain_core.tools import StructuredTool, ToolException

    ours = as_tool(tool)
    call = caller(ours, deps)

    async def coroutine(**arguments: Any) -> str:
        try:
            return await call(**arguments)
        except ToolError as error:
            raise ToolException(str(error)) from error

    def function(**arguments: Any) -> str:
        return bridge.run(coroutine(**arguments))

    spec = ours.spec
    description = spec.description or spec.name  # LangChain refuses a tool without
    return StructuredTool.from_function(function, coroutine, spec.name, description, args_schema=dict(spec.parameters))


def to_retriever(search: Search, *, k: int = 4) -> BaseRetriever:
    """A search, such as `index.search`, as a LangChain retriever. Without `await` it needs an index that `tripod.run` opened."""
    _expect_langchain()
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class TripodRetriever(BaseRetriever):  # type: ignore[misc]
        k: int

        async def _aget_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
            found = await search(query, k=k or self.k)
            return [Document(page_content=one.text, metadata=told_of(one) | {"start_index": one.start}, id=one.id) for one in found]

        def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
            return bridge.run(self._aget_relevant_documents(query, run_manager=run_manager, k=k))

    return TripodRetriever(k=k)


def _said(runnable: Runnable[Any, Any], which: str) -> Any:
    try:
        return getattr(runnable, which)
    except TypeError:  # it does not know
        return Any


def _expect_langchain() -> None:
    if find_spec("langchain_core") is None:
        raise MissingExtraError("langchain-core", "langchain", "what LangChain is given of ours")
