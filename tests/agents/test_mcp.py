"""Tools by the Model Context Protocol: those of a server are an agent's, and ours are a server's; in process, by HTTP, by stdio."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

import mcp_types
import uvicorn
from mcp import Client
from mcp.server.lowlevel import Server

from tripod.agents.agent import Agent
from tripod.agents.context import Context
from tripod.agents.mcp_client import McpTool, mcp_tools
from tripod.agents.mcp_server import index_tools, mcp_server
from tripod.agents.tool import tool
from tripod.chat.scripted import ScriptedModel
from tripod.documents import Document
from tripod.errors import ConfigError, EngineError, ToolError
from tripod.messages import Content, File, ToolCall
from tripod.retrieval.index import Index
from tripod.serving.server import bind

HANDBOOK = Path(__file__).parents[1] / "data" / "handbook"
PICTURE = File(media_type="image/png", data=b"\x89PNG")


@tool
async def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first.
    """
    return a + b


@tool
async def paint(color: str) -> tuple[str, File]:
    """Paint."""
    return f"a {color} dot", PICTURE


@tool
async def whose(context: Context[str]) -> str:
    """Whose it is."""
    return context.deps


async def using(server: Any, use: Callable[[dict[str, McpTool]], Awaitable[Any]], **options: Any) -> Any:
    async with mcp_tools(server, **options) as tools:
        return await use({made.spec.name: made for made in tools})


def call(server: Any, name: str, arguments: dict[str, Any], **options: Any) -> Content:
    async def use(tools: dict[str, McpTool]) -> Content:
        return await tools[name].call(arguments, Context(None))

    content: Content = anyio.run(lambda: using(server, use, **options))
    return content


def test_a_tool_that_went_through_the_protocol_is_the_same_tool() -> None:
    async def specs(tools: dict[str, McpTool]) -> Any:
        return [made.spec for made in tools.values()]

    assert anyio.run(lambda: using(mcp_server([add, paint]), specs)) == [add.spec, paint.spec]
    assert call(mcp_server([add]), "add", {"a": 2}) == "3"
    assert call(mcp_server([paint]), "paint", {"color": "red"}) == ("a red dot", PICTURE)
    assert call(mcp_server([whose], deps="Ada's"), "whose", {}) == "Ada's"


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [("add", {"a": "x"}, "a: Input should be a valid integer"), ("add", {}, "a: Field required"), ("gone", {}, "there is no tool 'gone'")],
)
def test_what_goes_wrong_there_is_told_here(name: str, arguments: dict[str, Any], complaint: str) -> None:
    async def use(tools: dict[str, McpTool]) -> None:
        made = tools["add"]
        await McpTool(made.client, name, made.spec, 5.0).call(arguments, Context(None))

    with pytest.raises(ToolError, match=complaint):
        anyio.run(lambda: using(mcp_server([add]), use))


def test_an_agent_uses_the_tools_of_a_server_and_names_of_two_servers_stand_apart() -> None:
    async def ask() -> Any:
        model = ScriptedModel([ToolCall("1", "calc_add", '{"a": 2, "b": 5}'), ToolCall("2", "calc_add", '{"a": "x"}'), "seven"])
        async with mcp_tools(mcp_server([add]), prefix="calc_") as calc, mcp_tools(mcp_server([add]), prefix="other.") as other:
            return await Agent(model, [*calc, *other])("2 + 5?"), [spec.spec.name for spec in other]

    result, names = anyio.run(ask)
    assert result.messages[2].text == "7"
    assert result.messages[4].text.startswith("Error: the arguments are wrong")
    assert names == ["other_add"]  # model servers take no dot in a name


def foreign(content: list[mcp_types.ContentBlock], *, pages: int = 1) -> Server[Any]:
    """A server that is not ours, whose tools all answer this."""

    async def list_tools(_: Any, params: mcp_types.PaginatedRequestParams | None) -> mcp_types.ListToolsResult:
        page = int(params.cursor) if params is not None and params.cursor else 0
        listed = mcp_types.Tool(name=f"tool{page}", title="A tool", input_schema={"type": "object"})
        return mcp_types.ListToolsResult(tools=[listed], next_cursor=str(page + 1) if page + 1 < pages else None)

    async def call_tool(_: Any, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        if params.arguments:
            await anyio.sleep_forever()
        return mcp_types.CallToolResult(content=content)

    return Server("foreign", on_list_tools=list_tools, on_call_tool=call_tool)


def test_every_kind_of_content_is_read_and_every_page_of_tools() -> None:
    content: list[mcp_types.ContentBlock] = [
        mcp_types.TextContent(text="see"),
        mcp_types.ImageContent(data="iVBORw==", mime_type="image/png"),
        mcp_types.ResourceLink(name="notes", uri="file:///notes.txt"),
        mcp_types.EmbeddedResource(resource=mcp_types.TextResourceContents(uri="file:///a.txt", text="inside")),
        mcp_types.EmbeddedResource(
            resource=mcp_types.BlobResourceContents(uri="file:///b.pdf", blob="JVBERg==", mime_type="application/pdf")
        ),
    ]
    expected = (
        "see",
        PICTURE,
        "notes: file:///notes.txt",
        "inside",
        File(media_type="application/pdf", data=b"%PDF", name="file:///b.pdf"),
    )
    assert call(foreign(content), "tool0", {}) == expected
    assert call(foreign(content[:1], pages=3), "tool2", {}) == "see"


def test_a_server_that_is_silent_is_left_after_its_time() -> None:
    with pytest.raises(TimeoutError):
        call(foreign([]), "tool0", {"hang": True}, timeout_s=0.05)


def test_an_index_is_searched_and_asked_through_the_protocol(tmp_path: Path) -> None:
    async def ask() -> tuple[Content, Content]:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.add([Document(source="mast.txt", text="The mast of the ship is made of larch. It was cut in 1920.")])

            async def use(tools: dict[str, McpTool]) -> tuple[Content, Content]:
                found = await tools["search"].call({"query": "mast", "k": 1}, Context(None))
                return found, await tools["ask"].call({"question": "What is the mast of the ship made of?"}, Context(None))

            return await using(mcp_server(index_tools(index)), use)  # type: ignore[no-any-return]

    found, answer = anyio.run(ask)
    assert '"source":"mast.txt"' in str(found)
    assert "made of larch" in str(answer)
    assert "[1] mast.txt" in str(answer)


def test_it_is_served_by_http() -> None:
    async def ask() -> Content:
        listener = bind("127.0.0.1", 0)
        live = uvicorn.Server(uvicorn.Config(mcp_server([add]).streamable_http_app(), log_level="warning"))
        serving = asyncio.create_task(live.serve(sockets=[listener]))
        async with mcp_tools(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp") as [made]:
            content = await made.call({"a": 2, "b": 2}, Context(None))
        live.should_exit = True
        await serving
        return content

    assert asyncio.run(ask()) == "4"


def test_nobody_at_the_address_or_behind_the_command_says_so() -> None:
    with pytest.raises(EngineError, match=r"no MCP server answers at http://127\.0\.0\.1:1/mcp"):
        call("http://127.0.0.1:1/mcp", "add", {})
    with pytest.raises(EngineError, match="no MCP server answers at no-such-command"):
        call(["no-such-command"], "add", {})


def test_the_command_serves_a_folder_and_own_tools_by_stdio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tools.py").write_text('def shout(text: str) -> str:\n    """Shout."""\n    return text.upper()\n')
    monkeypatch.chdir(tmp_path)
    env = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "XDG_CACHE_HOME": str(tmp_path), "TRIPOD_EMBEDDER": "none"}
    command = [sys.executable, "-m", "tripod", "mcp", "serve", str(HANDBOOK), "--tool", "own_tools:shout"]

    async def use(tools: dict[str, McpTool]) -> tuple[list[str], Content, Content]:
        shouted = await tools["shout"].call({"text": "hi"}, Context(None))
        return list(tools), shouted, await tools["ask"].call({"question": "How are pointing errors corrected?"}, Context(None))

    names, shouted, answer = anyio.run(lambda: using(command, use, env=env))
    assert names == ["shout", "search", "ask"]
    assert shouted == "HI"
    assert "Pointing errors are corrected with a model of seven terms." in str(answer)


def test_the_package_itself_can_call_our_server() -> None:
    """Without our client between."""

    async def ask() -> Any:
        async with Client(mcp_server([add])) as client:
            return await client.call_tool("add", {"a": 1})

    result = anyio.run(ask)
    assert [block.text for block in result.content] == ["2"]
    assert not result.is_error


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two tools are called 'add', and a client could reach but one; rename one"):
        mcp_server([add, paint, add])
