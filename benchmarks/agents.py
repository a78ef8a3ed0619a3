"""What an agent costs beside its model: one question, one tool call, one answer, with a scripted model; and what importing it costs.

    python -m benchmarks.agents [--python FOLDER/bin/python] [--seconds 1]

The python is one with pydantic-ai-slim, langchain and haystack-ai, each of which is measured if it is there, by the same loop, in the
same minute, with the same tool (`benchmarks/agent_peers.py`). Every contestant keeps its usual checks and traces; each run is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.agent_peers import import_seconds, milliseconds
from benchmarks.setting import keep, setting
from tripod.agents.agent import Agent
from tripod.agents.tool import tool
from tripod.messages import Message, Reply, ToolCall, Usage
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams

PEERS = ("pydantic-ai", "langchain", "haystack")
MOST_MS = 0.2  # for a run
MOST_IMPORT_S = 0.2


class Script(ChatModel):
    """Calls the tool, then says what it gave."""

    usage = Usage(prompt_tokens=10, completion_tokens=5)
    call = Message("assistant", "", (ToolCall("c1", "add", '{"a": 1, "b": 2}'),))

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        last = prompt.messages[-1]
        message = Message("assistant", last.text) if last.role == "tool" else self.call
        return Reply(message=message, finish_reason="stop", usage=self.usage)


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@tool(name="add")
async def add_async(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


async def run(agent: Agent[str]) -> None:
    result = await agent("1+2?")
    assert result.value == "3"
    assert len(result.messages) == 4
    assert [span.name for span in result.trace[0].children] == ["model", "tool", "model"]


async def idle_bytes(num_runs: int) -> float:
    """What one run holds that waits in its tool, of so many at once."""
    release, num_waiting = asyncio.Event(), 0

    @tool(name="add")
    async def waits(a: int, b: int) -> int:
        """Add two integers, late."""
        nonlocal num_waiting
        num_waiting += 1
        await release.wait()
        return a + b

    agent = Agent(Script(), [waits])
    await asyncio.wait_for(asyncio.gather(run(Agent(Script(), [add_async]))), 10)  # imports and caches
    before = _held_bytes()
    runs = [asyncio.ensure_future(run(agent)) for _ in range(num_runs)]
    while num_waiting < num_runs:
        await asyncio.sleep(0.01)
    held = _held_bytes() - before
    release.set()
    await asyncio.gather(*runs)
    return held / num_runs


def _held_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="the interpreter that has the peers")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each of five repetitions (default: %(default)s)")
    parser.add_argument("--idle", type=int, default=10_000, help="runs that wait at once, to see what one holds (default: %(default)s)")
    options = parser.parse_args()
    idle = asyncio.run(idle_bytes(options.idle))
    rows: dict[str, dict[str, list[float]]] = {}
    for name, given in (("tripod", add_async), ("tripod, in a thread", add)):
        agent = Agent(Script(), [given])
        rows[name] = {
            f"ms at c={parallel}": asyncio.run(milliseconds(lambda: run(agent), parallel, options.seconds))  # noqa: B023 - it is awaited here
            for parallel in (1, 50)
        }
    rows["tripod"]["import s"] = import_seconds(sys.executable, "from tripod import Agent, tool, Model")
    for peer in PEERS if options.python is not None else ():
        command = [str(options.python), str(Path(__file__).with_name("agent_peers.py")), peer, str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{peer}: not measured: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
            continue
        rows[peer] = json.loads(done.stdout.splitlines()[-1])
    print("| agent | " + " | ".join(rows["tripod"]) + " |\n|---|" + "---|" * len(rows["tripod"]))
    for name, row in rows.items():
        cells = (f"{statistics.median(v):.3f} ({min(v):.3f}-{max(v):.3f})" if (v := row.get(column)) else "" for column in rows["tripod"])
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"a run that waits in its tool holds {idle / 1024:.1f} KiB, {options.idle} at once")
    print(keep("agents", {"setting": setting("benchmarks.agents", ["pydantic", "anyio"]), "rows": rows, "idle_bytes": idle}))
    ours = rows["tripod"]
    kept = statistics.median(ours["ms at c=1"]) <= MOST_MS and statistics.median(ours["import s"]) <= MOST_IMPORT_S
    print("within" if kept else "NOT within", f"{MOST_MS} ms a run and {MOST_IMPORT_S} s an import")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
