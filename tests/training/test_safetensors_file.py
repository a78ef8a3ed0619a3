"""The safetensors library writes what is read here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tripod.errors import CheckpointError
from tripod.training.safetensors_file import SafetensorsFile


def test_bytes_and_floats_are_those_that_the_library_wrote(tmp_path: Path) -> None:
    values = torch.linspace(-3, 3, 12).reshape(3, 4)
    tensors = {str(dtype): values.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
    save_file({**tensors, "ints": torch.arange(3)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile.open(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        floats = file.floats(name, slice(2, 9))
        assert floats is not None
        assert floats.tolist() == tensor.flatten()[2:9].double().tolist()
        assert file.raw(name).tobytes() == tensor.flatten().view(torch.uint8).numpy().tobytes()
    assert file.floats("ints") is None
    assert file.tensors["torch.float64"].shape == (3, 4)
    laid = b"".join(file.raw(name).tobytes() for name in file.tensors)
    assert file.header + laid == (tmp_path / "x.safetensors").read_bytes()


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(10)}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:-1], whole + b"\0", b"\xff" * 100, whole.replace(b"F32", b"F99")):
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            SafetensorsFile.open(path)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(CheckpointError, match="expected to begin at 0"):
        SafetensorsFile.open(path)
