"""One engine under measurement: a process of its own, asked over pipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer_process import PeerError, PeerProcess
from benchmarks.serving.workloads import Requests


class ContestantError(Exception):
    """An engine could not be started or did not answer; it is then not measured."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a workload brought."""

    seconds: float
    tokens: list[list[int]]


class Contestant:
    """`name` is ENGINE:FORMAT, such as `vllm:bfloat16`."""

    def __init__(self, name: str, folder: Path, *, python: str = sys.executable, num_threads: int, log: Path) -> None:
        """Starts the engine and waits until it has loaded the model.

        Raises:
            ContestantError: it is not installed, or cannot run this model; with the reason.
        """
        self.name = name
        engine, _, weight_format = name.partition(":")
        arguments = (engine, weight_format, str(folder), str(num_threads))
        self._log = log
        self._process = PeerProcess(
            python, "benchmarks.serving.engines.worker", *arguments, environment={"OMP_NUM_THREADS": str(num_threads)}, log=log
        )
        with self._named():
            self.versions: Mapping[str, str] = self._process.read()["versions"]

    def run(self, requests: Requests) -> Answer:
        """Answer a workload.

        Raises:
            ContestantError: it failed, or gave another number of tokens than asked for.
        """
        with self._named():
            content = self._process.ask(prompts=requests.prompts, num_outputs=requests.num_outputs)
        lengths = [len(tokens) for tokens in content["tokens"]]
        if lengths != requests.num_outputs:
            raise ContestantError(f"{self.name} answered with {lengths} tokens; asked for {requests.num_outputs}")
        return Answer(content["seconds"], content["tokens"])

    def close(self) -> None:
        self._process.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except PeerError as error:
            raise ContestantError(f"{self.name}: {error}; its last words are in {self._log}") from error
