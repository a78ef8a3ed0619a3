"""The conformance runner of the Model Context Protocol against our server and our client.

    npm install @modelcontextprotocol/conformance        # needs Node 22 or later
    python -m benchmarks.campaigns mcp --runner node_modules/@modelcontextprotocol/conformance [--node node]

Every scenario of the runner passes, or its name stands below with the reason why we do not offer what it asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.setting import RESULTS, setting
from tripod.agents.context import Context
from tripod.agents.mcp_client import mcp_tools
from tripod.agents.mcp_server import mcp_server
from tripod.messages import Content, File, ToolSpec
from tripod.protocols import ToolContext

_TOOLS_ONLY = "our server offers tools, and nothing beside them"
_NO_PERSON = "a tool of ours does not ask the client's person or model: it has the run's own context"
_NO_OAUTH = "our client has no OAuth: hand `mcp_tools` a transport of the mcp package with its OAuth provider"
NOT_OFFERED: Mapping[str, str] = {
    "logging-set-level": _TOOLS_ONLY,
    "completion-complete": _TOOLS_ONLY,
    "tools-call-with-logging": _TOOLS_ONLY,
    "tools-call-with-progress": _TOOLS_ONLY,
    "tools-call-sampling": _NO_PERSON,
    "tools-call-elicitation": _NO_PERSON,
    "elicitation-sep1034-defaults": _NO_PERSON,
    "elicitation-sep1330-enums": _NO_PERSON,
    "server-sse-polling": "results are not kept for a client that comes back: a tool is called again",
    "resources-*": _TOOLS_ONLY,
    "prompts-*": _TOOLS_ONLY,
    "elicitation-sep1034-client-defaults": "our client asks no person: a server that must ask is used through the mcp package itself",
    "auth/*": _NO_OAUTH,
}
_PNG = File(media_type="image/png", data=b"\x89PNG\r\n\x1a\n")
_WAV = File(media_type="audio/wav", data=b"RIFF\x24\0\0\0WAVEfmt ")
_NOTE = File(media_type="text/plain", data=b"This is an embedded resource content.", name="note.txt")


@dataclass(frozen=True, slots=True)
class Gives:
    """A tool that always gives the same."""

    spec: ToolSpec
    content: Content

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Content:
        return self.content


def test_error_handling() -> str:
    """Fails."""
    raise RuntimeError("This tool intentionally returns an error for testing")


def tools() -> list[Any]:
    """What the runner expects of a server, by the descriptions of its scenarios."""
    nothing: Mapping[str, Any] = {"type": "object", "properties": {}}
    address = {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": address},
        "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
        "additionalProperties": False,
    }
    given: dict[str, Content] = {
        "test_simple_text": "This is a simple text response for testing.",
        "test_image_content": (_PNG,),
        "test_audio_content": (_WAV,),
        "test_embedded_resource": (_NOTE,),
        "test_multiple_content_types": ("Multiple content types test:", _PNG, _NOTE),
    }
    simple = [Gives(ToolSpec(name, "For the conformance runner.", nothing), content) for name, content in given.items()]
    return [
        *simple,
        Gives(ToolSpec("json_schema_2020_12_tool", "Tool with JSON Schema 2020-12 features", schema), "ok"),
        test_error_handling,
    ]


def reason(scenario: str) -> str | None:
    """Why a scenario cannot pass; None where it must."""
    for name, why in NOT_OFFERED.items():
        if scenario == name or (name.endswith("*") and scenario.startswith(name[:-1])):
            return why
    return None


async def serve(port: int) -> None:
    await uvicorn.Server(uvicorn.Config(mcp_server(tools()).streamable_http_app(), port=port, log_level="warning")).serve()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not begin to listen")


async def use(url: str) -> None:
    """What the runner expects of a client: it connects, and calls each tool that there is."""
    async with mcp_tools(url, timeout_s=20.0) as found:
        for tool in found:
            numbers = {name: 5 + place for place, name in enumerate(tool.spec.parameters.get("properties", {}))}
            print(tool.spec.name, await tool.call(numbers, Context(None)))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.campaigns mcp", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runner", type=Path, help="the folder of the npm package")
    parser.add_argument("--node", default="node", help="Node 22 or later (default: %(default)s)")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("url", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return 0
    if options.url is not None:
        asyncio.run(use(options.url))
        return 0
    if options.runner is None:
        parser.error("--runner names the folder of the npm package @modelcontextprotocol/conformance")
    runner = [options.node, str(options.runner / "dist" / "index.js")]
    listed = subprocess.run([*runner, "list"], capture_output=True, text=True, check=True).stdout
    servers, _, clients = listed.partition("Client scenarios")
    results: dict[str, str] = {}
    port = 18765
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    ours = [sys.executable, "-m", "benchmarks.campaigns", "mcp"]
    with subprocess.Popen([*ours, "--serve", str(port)], env=environment) as server, tempfile.TemporaryDirectory() as scratch:
        try:
            _wait_for(port)
            for text, side, options_of in (
                (servers, "server", ["--url", f"http://127.0.0.1:{port}/mcp"]),
                (clients, "client", ["--command", " ".join(ours)]),
            ):
                for line in text.splitlines():
                    if not line.strip().startswith("- "):
                        continue
                    scenario = line.split()[1]
                    if (why := reason(scenario)) is not None:
                        results[f"{side} {scenario}"] = f"not offered: {why}"
                        continue
                    command = [*runner, side, "--scenario", scenario, "--output-dir", scratch, *options_of]
                    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
                    results[f"{side} {scenario}"] = "passes" if done.returncode == 0 else f"FAILS: {(done.stdout + done.stderr)[-800:]}"
        finally:
            server.terminate()
    for name, outcome in results.items():
        print(f"{name}: {outcome}")
    version = json.loads((options.runner / "package.json").read_text(encoding="utf-8"))["version"]
    failed = sum(outcome.startswith("FAILS") for outcome in results.values())
    passed = sum(outcome == "passes" for outcome in results.values())
    print(f"{passed} pass, {failed} fail, {len(results) - passed - failed} are not offered, for the reasons above; runner {version}")
    with (RESULTS / "mcp-conformance.jsonl").open("a", encoding="utf-8") as kept:
        kept.write(json.dumps({"setting": setting("benchmarks.campaigns", ["mcp"]), "runner": version, "results": results}) + "\n")
    return 1 if failed or not passed else 0
