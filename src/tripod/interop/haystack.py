"""Haystack's components, retrievers and tools as ours, and ours as its. Extra `haystack`.

A model needs no wrapper: `tripod serve` speaks OpenAI's API, so `OpenAIChatGenerator(api_base_url="http://127.0.0.1:8000/v1", ...)` is one.
What is made here lives in one process: a pipeline that holds it cannot be written to YAML.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import anyio

from tripod import bridge
from tripod.agents.tool import as_tool
from tripod.documents import Passage
from tripod.errors import ConfigError, MissingExtraError
from tripod.interop.passages import Search, passage_of, told_of
from tripod.interop.tools import TIMEOUT_S, ForeignTool, caller, foreign_tool

if TYPE_CHECKING:
    from haystack.tools import Tool as HaystackTool

    from tripod.protocols import Tool


def from_component(component: Any, *, output: str | None = None, name: str | None = None) -> Callable[..., Awaitable[Any]]:
    """A component as an async function of its inputs, which is a step of a flow.

    Args:
        output: which of its outputs is the result; None: its only one, or all of them in a dict.
        name: of the step; None: the class's.

    Raises:
        ConfigError: it is no component, or has no such output.
    """
    if not hasattr(component, "__haystack_input__"):
        raise ConfigError(f"{type(component).__name__} is no Haystack component; give an instance of a class with @component")
    inputs = component.__haystack_input__._sockets_dict
    outputs = {one.name: one.type for one in component.__haystack_output__._sockets_dict.values()}
    if output is None and len(outputs) == 1:
        [output] = outputs
    if output is not None and output not in outputs:
        raise ConfigError(f"{type(component).__name__} has no output {output!r}; it has {', '.join(outputs)}")

    async def call(**given: Any) -> Any:
        result = await _run(component, given)
        return result if output is None else result[output]

    call.__name__ = name or type(component).__name__
    hints = {one.name: types.GenericAlias(list, (one.type,)) if one.is_variadic else one.type for one in inputs.values()}
    call.__annotations__ = {**hints, "return": dict[str, Any] if output is None else outputs[output]}
    parameters = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.is_mandatory else one.default_value,
            annotation=hints[one.name],
        )
        for one in inputs.values()
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def from_retriever(component: Any) -> Callable[..., Awaitable[list[Passage]]]:
    """A component from `query` to `documents` as a search: to fuse, to rerank, as a step of a flow, or as a tool.

    Raises:
        ConfigError: it does not take a `query`, as retrievers by embedding do not.
    """
    call = from_component(component, output="documents")
    takes = inspect.signature(call).parameters
    if "query" not in takes:
        raise ConfigError(f"{type(component).__name__} takes {', '.join(takes)} and no query; give a retriever that embeds it itself")

    async def search(question: str, k: int = 10) -> list[Passage]:
        """Find passages that have to do with a question."""
        found = await call(query=question, **({"top_k": k} if "top_k" in takes else {}))
        return [
            passage_of(one.content or "", one.meta, start=one.meta.get("split_idx_start"), id=one.id, score=one.score) for one in found[:k]
        ]

    return search


def from_tool(tool: HaystackTool, *, timeout_s: float | None = TIMEOUT_S) -> ForeignTool:
    """A Haystack tool, for `Agent(model, [from_tool(theirs)])`. What it raises, the model is told."""

    async def invoke(arguments: dict[str, Any]) -> Any:
        return await tool.invoke_async(**arguments)

    return foreign_tool(tool.name, tool.description, tool.parameters, invoke, timeout_s)


def to_component(search: Search, *, k: int = 10) -> Any:
    """A search, such as `index.search`, as a component from `query` (and `top_k`) to `documents`.

    Without `await` it needs an index that `tripod.run` opened.
    """
    _expect_haystack()
    from haystack import Document, component

    @component
    class TripodRetriever:
        @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
        def run(self, query: str, top_k: int = k) -> dict[str, Any]:  # the two must agree
            return bridge.run(self.run_async(query, top_k))

        @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
        async def run_async(self, query: str, top_k: int = k) -> dict[str, Any]:
            found = await search(query, k=top_k)
            documents = [
                Document(id=one.id, content=one.text, meta=told_of(one) | {"split_idx_start": one.start}, score=one.score) for one in found
            ]
            return {"documents": documents}

    return TripodRetriever()


def to_tool(tool: Tool | Callable[..., Any], *, deps: Any = None) -> HaystackTool:
    """Our tool, function or agent as a Haystack tool.

    Args:
        deps: what the tool's `Context` holds.
    """
    _expect_haystack()
    from haystack.tools import Tool as HaystackTool

    ours = as_tool(tool)
    call = caller(ours, deps)

    def function(**arguments: Any) -> str:
        return bridge.run(call(**arguments))

    spec = ours.spec
    return HaystackTool(spec.name, spec.description, dict(spec.parameters), function=function, async_function=call)


async def _run(component: Any, given: dict[str, Any]) -> Any:
    if warm_up := getattr(component, "warm_up", None):  # loads what it needs, once
        await anyio.to_thread.run_sync(warm_up)
    if getattr(component, "__haystack_supports_async__", False):
        return await component.run_async(**given)
    return await anyio.to_thread.run_sync(partial(component.run, **given))


def _expect_haystack() -> None:
    if find_spec("haystack") is None:
        raise MissingExtraError("haystack-ai", "haystack", "what Haystack is given of ours")
