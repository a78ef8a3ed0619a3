"""A peer under an interpreter of its own, which is asked in lines of JSON and answers in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class PeerError(Exception):
    """A peer that ended, or says that it cannot do what was asked; with its reason."""


class PeerProcess:
    """`python -m module arguments...`, with this checkout on its path.

    Args:
        environment: beside that of this process.
        log: where its error output goes; None: nowhere.

    Raises:
        OSError: there is no such interpreter.
    """

    def __init__(
        self, python: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        with open(os.devnull if log is None else log, "w") as errors:  # noqa: PTH123 - either of the two
            self._process = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            )

    def ask(self, **content: object) -> dict[str, Any]:
        """Its answer.

        Raises:
            PeerError: instead of one.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """What it says unasked: a first line, once it is ready. Raises as `ask` does."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        content: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in content:
            raise PeerError(content["error"])
        return content

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
