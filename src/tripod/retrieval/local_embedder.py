"""The default embedder: all-MiniLM-L6-v2, run by our own encoder on weights that are already on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.to_thread

from tripod.errors import CheckpointError

if TYPE_CHECKING:
    from tripod.engine.encode import Encoder
    from tripod.protocols import Vectors

_NEEDED = ("torch", "safetensors", "tokenizers")
# What decides, beside the weights, which vector a text gets: pooling, longest input, prompts, tokenizer.
_SETTINGS = ("tokenizer.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")


class LocalEmbedder:
    """An `Embedder` on an encoder in a local folder. The weights are loaded by the first text.

    Args:
        folder: an encoder in the Hugging Face layout, with `model.safetensors`.
        name: how the fingerprint calls it.

    Raises:
        CheckpointError: there are no weights or no config.json in the folder.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        self.folder = folder
        try:
            self.dim = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
            weights = _sha256(folder / "model.safetensors")
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder} holds no encoder: {error}; expected config.json and model.safetensors") from None
        settings = "".join(_sha256(folder / file) for file in _SETTINGS if (folder / file).is_file())
        # Without the number format: bfloat16 and float32 give the same vectors to a cosine of 0.9999, and an index should
        # open on either machine.
        self.fingerprint = f"{name}, weights {weights[:12]}, settings {hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        self._encoder: Encoder | None = None
        self._encoding = anyio.CapacityLimiter(1)  # one batch at a time: it takes all cores anyway

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
        """[N, dim], unit vectors, in the order of the texts."""
        return await anyio.to_thread.run_sync(self._encode, list(texts), kind, limiter=self._encoding)

    def _encode(self, texts: list[str], kind: Literal["query", "passage"]) -> Vectors:
        if self._encoder is None:
            from tripod.engine.encode import Encoder

            self._encoder = Encoder.load(self.folder)
        return self._encoder.encode(texts, kind=kind)


def find_default_embedder() -> tuple[LocalEmbedder | None, str | None]:
    """MiniLM if this machine has it, or the reason why not, with what to do. Never reaches the network."""
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        return None, f"{missing[0]} is not installed; run: pip install 'tripod[engine]'"
    from tripod.engine.default_encoder import HUB_ID, locate_default_encoder

    try:
        folder = locate_default_encoder()
    except CheckpointError as error:
        return None, str(error)
    return LocalEmbedder(folder, name=HUB_ID), None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
