"""One engine under measurement: a process of its own, asked over pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.workloads import Requests

ROOT = Path(__file__).parents[2]


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
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        command = [python, "-m", "benchmarks.serving.engines.worker", engine, weight_format, str(folder), str(num_threads)]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
            )
        self._log = log
        self.versions: Mapping[str, str] = self._read()["versions"]

    def run(self, requests: Requests) -> Answer:
        """Answer a workload.

        Raises:
            ContestantError: it failed, or gave another number of tokens than asked for.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": requests.prompts, "num_outputs": requests.num_outputs}) + "\n")
        self._process.stdin.flush()
        content = self._read()
        lengths = [len(tokens) for tokens in content["tokens"]]
        if lengths != requests.num_outputs:
            raise ContestantError(f"{self.name} answered with {lengths} tokens; asked for {requests.num_outputs}")
        return Answer(content["seconds"], content["tokens"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        content: dict[str, Any] = json.loads(line) if line else {"error": f"it ended; its last words are in {self._log}"}
        if "error" in content:
            raise ContestantError(f"{self.name}: {content['error']}")
        return content
