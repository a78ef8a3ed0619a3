"""OpenVINO GenAI's continuous batching: `pip install openvino-genai` in an environment of its own.

It reads models of its own format. `optimum-cli export openvino -m FOLDER --task text-generation-with-past --weight-format fp32
FOLDER/openvino-fp32` makes one (int8: `--weight-format int8 FOLDER/openvino-int8`); float32 and bfloat16 both read the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.serving.engines.worker import Generate


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("openvino", "openvino-genai")}


def load(folder: str, weight_format: str, num_threads: int) -> Generate:
    import numpy as np
    import openvino
    import openvino_genai

    exported = Path(folder) / ("openvino-int8" if weight_format == "int8" else "openvino-fp32")
    if not exported.is_dir():
        raise FileNotFoundError(f"{exported} is absent; make it with optimum-cli (see benchmarks/serving/engines/openvino_engine.py)")
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2  # GiB
    scheduler.max_num_batched_tokens = 1024
    scheduler.max_num_seqs = 64
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    precision = "f32" if weight_format == "float32" else "bf16"
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(exported), scheduler, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": num_threads}
    )

    def generate(prompts: Sequence[Sequence[int]], num_outputs: Sequence[int]) -> list[list[int]]:
        configs = []
        for num_output in num_outputs:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = num_output, True, False
            configs.append(config)
        results = pipeline.generate([openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts], configs)
        return [list(result.m_generation_ids[0]) for result in results]

    return generate
