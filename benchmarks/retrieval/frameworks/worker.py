"""The process around one framework: texts and questions come in as lines of JSON, rankings and times go out.

    PYTHON -m benchmarks.retrieval.frameworks.worker FRAMEWORK ENCODER_FOLDER BUILD_THREADS QUERY_THREADS

Needs the standard library only, so that it runs under a framework's own interpreter. What a framework does is in FRAMEWORK_pipeline.py,
whose `load(encoder)` imports it, loads the encoder and gives two functions: from texts to a retriever, and from a question to ids.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.memory import peak_bytes

Build = Callable[[Sequence[str], Sequence[str]], Any]  # ids and texts -> a retriever
Retrieve = Callable[[Any, str], list[str]]  # a retriever and a question -> ids, best first


def main() -> None:
    framework, encoder, build_threads, query_threads = sys.argv[1:5]
    answers = os.fdopen(os.dup(1), "w")  # libraries print to the standard output; they get the error output instead
    os.dup2(2, 1)

    def answer(**content: object) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        began_s = time.perf_counter()
        module = importlib.import_module(f"benchmarks.retrieval.frameworks.{framework}_pipeline")
        build, retrieve = module.load(encoder)
        load_s = time.perf_counter() - began_s
        import torch

        torch.set_num_threads(int(build_threads))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(load_s=load_s, versions=module.versions())
    retriever = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "texts" in asked:
                began_s = time.perf_counter()
                retriever = build(asked["ids"], asked["texts"])
                build_s = time.perf_counter() - began_s
                torch.set_num_threads(int(query_threads))
                began_s = time.perf_counter()
                retrieve(retriever, asked["first"])
                answer(build_s=build_s, first_s=time.perf_counter() - began_s)
                continue
            rankings, milliseconds = [], []
            for question in asked["questions"]:
                began_s = time.perf_counter()
                rankings.append(retrieve(retriever, question))
                milliseconds.append(1e3 * (time.perf_counter() - began_s))
            answer(rankings=rankings, ms=milliseconds, peak_mib=peak_bytes() / 2**20)
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
