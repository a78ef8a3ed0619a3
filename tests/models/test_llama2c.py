"""Checkpoints of llama2.c: a real trained model tells its story, and broken files are refused."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tripod.errors import CheckpointError
from tripod.models.llama2c import load_llama2c
from tripod.models.load import load_language_model
from tripod.ops.attention import causal_attention
from tripod.text.load_tokenizer import load_tokenizer

SHA256 = "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696"


def test_stories260k_tells_the_golden_story(shared_data: Path) -> None:
    folder = shared_data / "stories260K"
    assert hashlib.sha256((folder / "stories260K.bin").read_bytes()).hexdigest() == SHA256
    model = load_language_model(folder / "stories260K.bin")
    remember = Remembering()
    token_ids = [1]  # begin of sequence
    with torch.inference_mode():
        for position in range(256):
            hidden = model.hidden(torch.tensor(token_ids[-1:]), torch.tensor([position]), remember)
            token_ids.append(int(model.logits(hidden[0]).argmax()))
        hidden = model.hidden(torch.tensor([token_ids[:-1]]), torch.arange(256)[None], causal_attention)
        assert model.logits(hidden[0]).argmax(-1).tolist() == token_ids[1:]  # at once, as token by token
    story = load_tokenizer(folder).decode(token_ids)
    assert story == (folder / "greedy-golden.txt").read_text().removesuffix("\n")


class Remembering:
    """An `Attend` for one sequence, token by token: keeps the keys and values of each layer."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        if layer in self.kept:
            key, value = (torch.cat(pair) for pair in zip(self.kept[layer], (key, value), strict=True))
        self.kept[layer] = key, value
        shared = query.unflatten(1, (key.shape[1], -1))[0]  # [G, H/G, K]
        weights = (torch.einsum("ghk,tgk->ght", shared, key) * scale).softmax(-1)
        return torch.einsum("ght,tgk->ghk", weights, value).flatten(0, 1)[None]


def _file(path: Path, *, vocab: int, num_floats: int) -> Path:
    """dim 4, hidden 6, 1 layer, 2 heads, 1 key/value head, 8 positions; every float is its own place in the file."""
    path.write_bytes(struct.pack("<7i", 4, 6, 1, 2, 1, vocab, 8) + struct.pack(f"<{num_floats}f", *range(num_floats)))
    return path


NUM_FLOATS = 20 + 4 + 16 + 8 + 8 + 16 + 4 + 24 + 24 + 24 + 4 + 8 + 8  # 5 words, one layer, final norm, two rotary tables


def test_a_negative_vocabulary_brings_an_output_matrix(tmp_path: Path) -> None:
    tied = load_llama2c(_file(tmp_path / "tied.bin", vocab=5, num_floats=NUM_FLOATS))
    untied = load_llama2c(_file(tmp_path / "untied.bin", vocab=-5, num_floats=NUM_FLOATS + 20))
    hidden = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert tied.logits(hidden).tolist() == [0.0, 4.0, 8.0, 12.0, 16.0]  # the first column of the embedding
    assert untied.logits(hidden).tolist() == [NUM_FLOATS + row * 4.0 for row in range(5)]


def test_a_truncated_file_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = _file(tmp_path / "short.bin", vocab=5, num_floats=NUM_FLOATS - 1)
    with pytest.raises(CheckpointError, match=rf"short\.bin: {28 + 4 * NUM_FLOATS - 4} bytes.*announces {28 + 4 * NUM_FLOATS}"):
        load_llama2c(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(b"not a model at all, only some text that is long enough")
    with pytest.raises(CheckpointError, match=r"other\.bin: the header .* is not that of a llama2\.c checkpoint"):
        load_llama2c(path)
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="5 bytes are too few"):
        load_llama2c(path)
