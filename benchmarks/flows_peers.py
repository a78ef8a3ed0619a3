"""One framework in its process, as `benchmarks.flows` asks it: chains of steps, each of which asks a scripted model.

    python -m benchmarks.flows_peers FRAMEWORK

Reads a line of JSON a request, and answers with one. It imports the framework that it is asked for, and nothing of the others.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

Sync: TypeAlias = Callable[[str], str]
Async: TypeAlias = Callable[[str], Awaitable[str]]
Built: TypeAlias = tuple[Sync | None, Async]  # None: the framework has no synchronous way

SCRIPT = {str(number): str(number + 1) for number in range(100)}  # what the scripted model says to what it is asked


def reply(text: str) -> str:
    """The model."""
    return SCRIPT[text]


async def areply(text: str) -> str:
    return SCRIPT[text]


def floor(num_steps: int, step: Async) -> Built:
    def chain(text: str) -> str:
        for _ in range(num_steps):
            text = reply(text)
        return text

    async def achain(text: str) -> str:
        for _ in range(num_steps):
            text = await step(text)
        return text

    return chain, achain


def tripod(num_steps: int, step: Async) -> Built:
    from tripod import Flow
    from tripod.flows.step import step as named

    plain = Flow.chain(*(named(reply, name=f"step{number:02}") for number in range(num_steps)))
    flow = Flow.chain(*(named(step, name=f"step{number:02}") for number in range(num_steps)))
    return lambda text: str(plain.run(text=text)), lambda text: flow(text=text)


def langchain(num_steps: int, step: Async) -> Built:
    from langchain_core.runnables import RunnableLambda

    links = [RunnableLambda(reply, step) for _ in range(num_steps)]
    chain: Any = links[0]
    for link in links[1:]:
        chain = chain | link
    return chain.invoke, chain.ainvoke


def langgraph(num_steps: int, step: Async) -> Built:
    from typing import TypedDict

    from langchain_core.runnables import RunnableLambda
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        text: str

    async def anode(state: State) -> State:
        return {"text": await step(state["text"])}

    graph = StateGraph(State)
    before = START
    for number in range(num_steps):
        graph.add_node(f"step{number}", RunnableLambda(lambda state: {"text": reply(state["text"])}, anode))
        graph.add_edge(before, f"step{number}")
        before = f"step{number}"
    graph.add_edge(before, END)
    compiled = graph.compile()
    options: Any = {"recursion_limit": 100}

    async def arun(text: str) -> str:
        found: str = (await compiled.ainvoke({"text": text}, options))["text"]
        return found

    return lambda text: compiled.invoke({"text": text}, options)["text"], arun


def haystack(num_steps: int, step: Async) -> Built:
    import haystack

    class Step:
        @haystack.component.output_types(text=str)
        def run(self, text: str) -> dict[str, str]:
            return {"text": reply(text)}

        @haystack.component.output_types(text=str)
        async def run_async(self, text: str) -> dict[str, str]:
            return {"text": await step(text)}

    made: Any = haystack.component(Step)
    pipeline: Any = haystack.Pipeline()
    for number in range(num_steps):
        pipeline.add_component(f"step{number}", made())
        if number:
            pipeline.connect(f"step{number - 1}.text", f"step{number}.text")
    last = f"step{num_steps - 1}"

    async def arun(text: str) -> str:
        found: str = (await pipeline.run_async({"step0": {"text": text}}))[last]["text"]
        return found

    return lambda text: pipeline.run({"step0": {"text": text}})[last]["text"], arun


def llamaindex(num_steps: int, step: Async) -> Built:
    from workflows import Workflow
    from workflows import step as workflow_step
    from workflows.events import Event, StartEvent, StopEvent

    events = [StartEvent, *(type(f"Event{number}", (Event,), {}) for number in range(1, num_steps)), StopEvent]
    members: dict[str, Any] = {}
    for number in range(num_steps):
        members[f"step{number}"] = workflow_step(_handler(number, events[number], events[number + 1], number == num_steps - 1, step))
    workflow = type("Chain", (Workflow,), members)(timeout=None)

    async def arun(text: str) -> str:
        found: str = await workflow.run(text=text)
        return found

    return None, arun


def _handler(number: int, taken: Any, made: Any, is_last: bool, step: Async) -> Any:
    async def handle(self: Any, event: Any) -> Any:
        text = await step(event.text)
        return made(result=text) if is_last else made(text=text)

    handle.__name__, handle.__qualname__ = f"step{number}", f"Chain.step{number}"
    handle.__annotations__ = {"event": taken, "return": made}  # the edges
    return handle


def pydantic_graph(num_steps: int, step: Async) -> Built:
    from pydantic_graph import GraphBuilder, StepContext

    builder: Any = GraphBuilder(input_type=str, output_type=str, auto_instrument=False)
    before = builder.start_node
    for number in range(num_steps):

        async def run(context: Any) -> str:
            return await step(context.inputs)

        run.__annotations__ = {"context": StepContext[None, None, str], "return": str}  # objects, for who reads them
        node = builder.step(run, node_id=f"step{number}")
        builder.add_edge(before, node)
        before = node
    builder.add_edge(before, builder.end_node)
    graph = builder.build()

    async def arun(text: str) -> str:
        found: str = await graph.run(inputs=text)
        return found

    return None, arun


BUILDERS: dict[str, tuple[Callable[[int, Async], Built], str]] = {
    "floor": (floor, ""),
    "tripod": (tripod, ""),
    "langchain": (langchain, "langchain-core"),
    "langgraph": (langgraph, "langgraph"),
    "haystack": (haystack, "haystack-ai"),
    "llamaindex": (llamaindex, "llama-index-workflows"),
    "pydantic-graph": (pydantic_graph, "pydantic-graph"),
}


def measure(name: str, num_steps: int, mode: str, num_at_once: int, least_s: float) -> dict[str, Any]:
    """Microseconds of one chain; what it answered is given back too, for whoever compares."""
    chain, achain = BUILDERS[name][0](num_steps, areply)
    if mode == "sync":
        if chain is None:
            return {"us": None, "result": None}
        result = chain("0")
        number = _enough(least_s, lambda number: _sync(chain, number))
        return {"us": _sync(chain, number) / number * 1e6, "result": result}

    async def go() -> dict[str, Any]:
        result = await achain("0")

        async def run(number: int) -> float:
            started = time.perf_counter()
            for _ in range(max(1, number // num_at_once)):
                if num_at_once == 1:
                    await achain("0")
                else:
                    await asyncio.gather(*(achain("0") for _ in range(num_at_once)))
            return (time.perf_counter() - started) / (max(1, number // num_at_once) * num_at_once)

        number = num_at_once
        while (took_s := await run(number)) * number < least_s / 4:
            number *= 2
        number = max(num_at_once, int(least_s / took_s))
        return {"us": await run(number) * 1e6, "result": result}

    return asyncio.run(go())


def idle(name: str, num_runs: int) -> dict[str, Any]:
    """Bytes of resident memory that each of many runs takes while its one step waits for the model."""

    async def go() -> dict[str, Any]:
        go_on, num_waiting = asyncio.Event(), 0

        async def wait(text: str) -> str:
            nonlocal num_waiting
            num_waiting += 1
            await go_on.wait()
            return SCRIPT[text]

        _, achain = BUILDERS[name][0](1, wait)
        go_on.set()
        await achain("0")
        go_on.clear()
        num_waiting = 0
        gc.collect()
        before = _resident_bytes()
        runs = [asyncio.ensure_future(achain("0")) for _ in range(num_runs)]
        for _ in range(6000):
            await asyncio.sleep(0.01)
            if num_waiting == num_runs:
                break
        after = _resident_bytes()
        reached = num_waiting
        go_on.set()
        results = set(await asyncio.gather(*runs))
        return {"bytes": (after - before) / num_runs, "num_waiting": reached, "result": results.pop() if len(results) == 1 else None}

    return asyncio.run(go())


def _sync(chain: Sync, number: int) -> float:
    started = time.perf_counter()
    for _ in range(number):
        chain("0")
    return time.perf_counter() - started


def _enough(least_s: float, run: Callable[[int], float]) -> int:
    number = 1
    while run(number) < least_s / 4:
        number *= 2
    return number * 4


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    name = sys.argv[1]
    package = BUILDERS[name][1]
    answers = sys.stdout
    sys.stdout = sys.stderr  # a framework that prints must not speak to whoever asks
    try:
        BUILDERS[name][0](1, areply)
        print(json.dumps({"version": version(package) if package else ""}), file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            answer = idle(name, asked["idle"]) if "idle" in asked else measure(name, **asked)
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)


if __name__ == "__main__":
    main()
