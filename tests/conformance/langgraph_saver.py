"""LangGraph's checkpoints in a journal: a thread is an execution, a checkpoint and each of its pending writes a step."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple, get_checkpoint_id, get_checkpoint_metadata

from tripod.errors import ConfigError
from tripod.flows.database import Execute
from tripod.flows.durable import durable
from tripod.flows.journal import Journal
from tripod.flows.records import StepRecord, read_steps, write_step

_STEP = StepRecord(path="", position=0, name="", arguments="{}", is_safe=True, state="done", started_s=0)


@durable
async def langgraph() -> None:
    """What the executions run: nothing, since LangGraph runs the graph."""


class JournalSaver(BaseCheckpointSaver[str]):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        thread, space, parent = _told(config)
        content = {"checkpoint": self._packed(checkpoint), "metadata": self._packed(get_checkpoint_metadata(config, metadata))}
        await self._write(thread, ["checkpoint", space, checkpoint["id"]], {**content, "parent": parent})
        return _config(thread, space, checkpoint["id"])

    async def aput_writes(self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = "") -> None:
        thread, space, id = _told(config)
        for number, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, number)
            content = {"channel": channel, "value": self._packed(value), "order": [task_path, task_id, index]}
            await self._write(thread, ["write", space, id, task_id, index], content, replaces=index < 0)

    async def aget_tuple(self, config: Any) -> CheckpointTuple | None:
        return await anext(aiter(self.alist(_config(*_told(config)), limit=1)), None)

    async def alist(
        self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None
    ) -> AsyncIterator[CheckpointTuple]:
        where = config["configurable"] if config else {}
        threads = [where["thread_id"]] if config else [record.id for record in await self.journal.records()]
        found = [one for thread in threads for one in await self._tuples(thread)]
        for one in sorted(found, key=lambda one: one.checkpoint["id"], reverse=True):
            _, space, id = _told(one.config)
            is_before = before is None or id < str(get_checkpoint_id(before))
            is_there = where.get("checkpoint_ns", space) == space and where.get("checkpoint_id", id) == id
            if is_before and is_there and all(one.metadata.get(key) == value for key, value in (filter or {}).items()):
                if limit is not None and (limit := limit - 1) < 0:
                    return
                yield one

    async def adelete_thread(self, thread_id: str) -> None:
        await self.journal.transaction(lambda execute: execute("DELETE FROM executions WHERE id = ? RETURNING id", thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        for record in await self.journal.records():
            await self._keep(record.id, [one for one in await self._tuples(record.id) if one.metadata.get("run_id") not in run_ids])

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        with suppress(ConfigError):  # there is no such thread
            await self.journal.fork(source_thread_id, new_id=target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        for thread in thread_ids:
            latest = {one.config["configurable"]["checkpoint_ns"]: one for one in await self._tuples(thread)}
            await self._keep(thread, list(latest.values()) if strategy == "keep_latest" else [])

    async def _tuples(self, thread: str) -> list[CheckpointTuple]:
        """Of one thread, the oldest first."""
        records = await self.journal.transaction(lambda execute: read_steps(execute, thread))
        steps: list[Any] = [(json.loads(one.path), json.loads(one.result or "")) for one in records]
        found = []
        for (_, space, id), content in sorted((step for step in steps if step[0][0] == "checkpoint"), key=lambda step: step[0][2]):
            writes = sorted((told for path, told in steps if path[:3] == ["write", space, id]), key=lambda told: told["order"])
            pending = [(told["order"][1], told["channel"], self._unpacked(told["value"])) for told in writes]
            parent = _config(thread, space, content["parent"]) if content["parent"] else None
            checkpoint, metadata = self._unpacked(content["checkpoint"]), self._unpacked(content["metadata"])
            found.append(CheckpointTuple(_config(thread, space, id), checkpoint, metadata, parent, pending))
        return found

    async def _keep(self, thread: str, kept: Sequence[CheckpointTuple]) -> None:
        marks = {_told(one.config)[1:] for one in kept}
        for step in await self.journal.transaction(lambda execute: read_steps(execute, thread)):
            if tuple(json.loads(step.path)[1:3]) not in marks:
                await self.journal.transaction(partial(_delete, thread, step.path))

    async def _write(self, thread: str, path: list[Any], content: Any, *, replaces: bool = True) -> None:
        await self.journal.run(langgraph, id=thread)  # a thread of this name may be there
        step = replace(_STEP, path=json.dumps(path), name=path[0], result=json.dumps(content))
        steps = await self.journal.transaction(lambda execute: read_steps(execute, thread))
        if replaces or all(one.path != step.path for one in steps):
            await self.journal.transaction(lambda execute: write_step(execute, thread, step))

    def _packed(self, value: Any) -> list[str]:
        kind, content = self.serde.dumps_typed(value)
        return [kind, base64.b64encode(content).decode()]

    def _unpacked(self, packed: list[str]) -> Any:
        return self.serde.loads_typed((packed[0], base64.b64decode(packed[1])))


def _delete(thread: str, path: str, execute: Execute) -> None:
    execute("DELETE FROM steps WHERE execution = ? AND path = ?", thread, path)


def _told(config: Any) -> tuple[str, str, str | None]:
    return config["configurable"]["thread_id"], config["configurable"].get("checkpoint_ns", ""), get_checkpoint_id(config)


def _config(thread: str, space: str, id: str | None) -> Any:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": space, **({"checkpoint_id": id} if id else {})}}
