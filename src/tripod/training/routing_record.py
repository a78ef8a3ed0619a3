"""Where the router of a sparse model sent a sample of tokens, at each step that the checkpoint rule names, from step 0 on.

    RUN/routing/step0.safetensors, step1.safetensors, step2.safetensors, ...

Every file of a run holds the same tokens, so that two of them tell what training changed. Its arrays (N tokens, L sparse layers in the
order of the model, k choices a token):

    token_ids   [N]        int32     what the model read
    positions   [N]        int32     where it stands in its sequence, from 0
    rows        [N]        int32     the sequence: the number of the row in the order, or of the text that was read
    documents   [N]        int32     from which document of its data set, -1 where the rows do not say
    datasets    [N]        int32     which data set of a mixture
    experts     [L, N, k]  uint8     (uint16 above 256 experts) in the order of the router's choices, the best first
    weights     [L, N, k]  float16   by which the outputs of the experts are multiplied; 0 where the token was dropped
    is_kept     [L, N, k]  bool      False where the expert had no room left (capacity), or where there is no such choice (expert choice)

and its metadata `routing`, as JSON: `step`, `num_experts` and `layers` (numbers of the model's blocks, from 0). The bytes are a function of
the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from tripod.durable_files import atomic_file
from tripod.errors import CheckpointError, ShapeError

FOLDER = "routing"
_FILE = re.compile(r"step(\d+)\.safetensors")
_OF_TOKENS = ("token_ids", "positions", "rows", "documents", "datasets")
_OF_CHOICES = ("experts", "weights", "is_kept")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingRecord:
    """The routing of N tokens in L sparse layers, k choices each; see above for the arrays.

    Raises:
        ShapeError: arrays that do not fit each other.
    """

    step: int
    layers: tuple[int, ...]
    num_experts: int
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    rows: NDArray[np.int32]
    documents: NDArray[np.int32]
    datasets: NDArray[np.int32]
    experts: NDArray[Any]
    weights: NDArray[np.float16]
    is_kept: NDArray[np.bool_]

    def __post_init__(self) -> None:
        num_tokens, num_choices = self.experts.shape[1:] if self.experts.ndim == 3 else (-1, -1)
        expected = dict.fromkeys(_OF_TOKENS, (num_tokens,)) | dict.fromkeys(_OF_CHOICES, (len(self.layers), num_tokens, num_choices))
        if wrong := [
            f"{name} is {list(getattr(self, name).shape)}" for name, shape in expected.items() if getattr(self, name).shape != shape
        ]:
            raise ShapeError(
                f"a routing record of {len(self.layers)} layers: {', '.join(wrong)}; expected experts [L, N, k] and all others to fit it"
            )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[2])

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in (*_OF_TOKENS, *_OF_CHOICES)}


def expert_dtype(num_experts: int) -> type[np.uint8] | type[np.uint16]:
    """Of the numbers of experts."""
    return np.uint8 if num_experts <= 256 else np.uint16


def write_routing(run: Path, record: RoutingRecord) -> Path:
    """Keep a record in the folder of a run, instead of one of the same step."""
    path = routing_path(run, record.step)
    facts = {name: getattr(record, name) for name in ("step", "num_experts", "layers")}
    arrays = {name: np.ascontiguousarray(array) for name, array in record.arrays().items()}
    with atomic_file(path) as stream:
        stream.write(to_safetensors(arrays, {"routing": json.dumps(facts)}))
    return path


def read_routing(path: Path) -> RoutingRecord:
    """Read one file.

    Raises:
        CheckpointError: it is absent, broken, or not a routing record.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["routing"])
            arrays = {name: file.get_tensor(name) for name in (*_OF_TOKENS, *_OF_CHOICES)}
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a routing record ({error}); give a file of a run's folder `{FOLDER}`") from error
    return RoutingRecord(**(facts | {"layers": tuple(facts["layers"])}), **arrays)


def routing_path(run: Path, step: int) -> Path:
    return run / FOLDER / f"step{step}.safetensors"


def routing_steps(run: Path) -> tuple[int, ...]:
    """The steps whose routing a run has kept, in order; none of a dense model."""
    folder = run / FOLDER
    found = (_FILE.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return tuple(sorted(int(match[1]) for match in found if match))
