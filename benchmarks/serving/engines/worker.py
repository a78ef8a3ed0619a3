"""The process around one engine: requests come in as lines of JSON, tokens and seconds go out.

    PYTHON -m benchmarks.serving.engines.worker ENGINE FORMAT MODEL_FOLDER THREADS

Needs the standard library and numpy only, so that it runs under a peer's own interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

Generate = Callable[[Sequence[Sequence[int]], Sequence[int]], list[list[int]]]  # prompts, numbers of tokens -> token ids


def main() -> None:
    engine, weight_format, folder, num_threads = sys.argv[1:5]
    answers = os.fdopen(os.dup(1), "w")  # libraries print to the standard output; they get the error output instead
    os.dup2(2, 1)

    def answer(**content: object) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        module = importlib.import_module(f"benchmarks.serving.engines.{engine}_engine")
        generate: Generate = module.load(folder, weight_format, int(num_threads))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(ready=True, versions=module.versions())
    for line in sys.stdin:
        asked = json.loads(line)
        began_s = time.perf_counter()
        try:
            tokens = generate(asked["prompts"], asked["num_outputs"])
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")
            continue
        answer(seconds=time.perf_counter() - began_s, tokens=tokens)


if __name__ == "__main__":
    main()
