"""MiniLM under OpenVINO, for `benchmarks.embedding`: `pip install openvino transformers torch` in an environment of its own.

In bfloat16, as its documentation says for a CPU: texts sorted by length in batches of 32, as many streams as it finds best for many texts,
and one for a single question.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

BATCH = 32


def main() -> None:
    folder, num_threads = sys.argv[1], int(sys.argv[2])
    import openvino
    import torch
    from transformers import AutoModel, AutoTokenizer

    class Layers(torch.nn.Module):
        """The model without the making of its mask, which cannot be traced."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden = self.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
            unseen = (1.0 - attention_mask[:, None, None, :].float()) * -1e9
            return self.bert.encoder(hidden, attention_mask=unseen)[0]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    example = dict(tokenizer(["a text", "another one"], padding=True, return_tensors="pt"))
    example = {name: example[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        model = openvino.convert_model(Layers(), example_input=example)
    options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": num_threads}
    many = openvino.Core().compile_model(model, "CPU", {**options, "PERFORMANCE_HINT": "THROUGHPUT"})
    one = openvino.Core().compile_model(model, "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"})

    def encode(texts: list[str]) -> Any:
        compiled = one if len(texts) == 1 else many
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        vectors = np.empty((len(texts), model.outputs[0].partial_shape[-1].get_length()), np.float32)

        def keep(request: Any, given: tuple[list[int], Any]) -> None:
            rows, mask = given
            hidden = request.get_output_tensor(0).data * mask[..., None]
            pooled = hidden.sum(1) / mask.sum(1, keepdims=True)
            vectors[rows] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

        queue = openvino.AsyncInferQueue(compiled)
        queue.set_callback(keep)
        for at in range(0, len(texts), BATCH):
            rows = order[at : at + BATCH]
            inputs = dict(tokenizer([texts[row] for row in rows], padding=True, truncation=True, max_length=256, return_tensors="np"))
            queue.start_async(inputs, (rows, inputs["attention_mask"].astype(np.float32)))
        queue.wait_all()
        return vectors

    print(json.dumps({"version": openvino.__version__}), flush=True)
    for line in sys.stdin:
        texts = json.loads(line)["texts"]
        start = time.perf_counter()
        vectors = encode(texts)
        print(json.dumps({"seconds": time.perf_counter() - start, "vectors": vectors.tolist()}), flush=True)


if __name__ == "__main__":
    main()
