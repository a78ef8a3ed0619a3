"""Turns texts into vectors with a BERT encoder (Reimers & Gurevych 2019, arXiv:1908.10084)."""

# N texts, T tokens of them all, D size of a vector

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from tripod.engine.encoder_route import choose_encoder_route
from tripod.engine.execution.route import Kernels
from tripod.errors import CheckpointError, TokenizerError
from tripod.models.bert import Bert
from tripod.models.checkpoint import WEIGHT_FILES
from tripod.models.load import load_encoder

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls"]

MAX_BATCH_TOKENS = 512  # enough for matrix products at full speed, few enough that the threads end together


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What the files beside an encoder's weights say about turning token states into one vector.

    sentence-transformers writes them: modules.json, 1_Pooling/config.json, sentence_bert_config.json and
    config_sentence_transformers.json. Where they are absent, its defaults hold: the mean, over as many tokens as the model reads.
    """

    max_tokens: int  # a longer text is cut, special tokens included in the count
    pooling: Pooling = "mean"
    do_lower_case: bool = False
    prompts: Mapping[str, str]  # put before a text, by kind: "query", "passage"

    @classmethod
    def read(cls, folder: Path, *, max_positions: int) -> Self:
        """Read a model's folder.

        Raises:
            CheckpointError: a module or a pooling that we do not have.
        """
        pooling_folder = "1_Pooling"
        for module in _read_json(folder / "modules.json", []):
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                pooling_folder = module["path"]
            elif kind not in ("Transformer", "Normalize"):
                raise CheckpointError(f"{folder}: modules.json asks for a {kind}; supported: Transformer, Pooling, Normalize")
        sentence = _read_json(folder / "sentence_bert_config.json", {})
        prompts = _read_json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
        return cls(
            max_tokens=min(sentence.get("max_seq_length") or max_positions, max_positions),
            pooling=_pooling(_read_json(folder / pooling_folder / "config.json", {}), folder),
            do_lower_case=sentence.get("do_lower_case", False),
            prompts={"query": prompts.get("query", ""), "passage": prompts.get("passage") or prompts.get("document", "")},
        )


def _pooling(config: Mapping[str, Any], folder: Path) -> Pooling:
    asked = [key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    asked = asked or [config.get("pooling_mode", "mean_tokens")]
    match asked:
        case ["mean_tokens" | "mean"]:
            return "mean"
        case ["cls_token" | "cls"]:
            return "cls"
        case _:
            raise CheckpointError(f"{folder} asks for the pooling {' and '.join(map(str, asked))}; supported: mean_tokens, cls_token")


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors, and what was read to make them."""

    vectors: NDArray[np.float32]  # [N, D], each of length 1
    num_tokens: int  # read by the model, special tokens included
    num_truncated: int  # texts of which the end was not read


class Encoder:
    """A BERT encoder with its tokenizer and pooling."""

    def __init__(self, model: Bert, tokenizer: Tokenizer, config: EncoderConfig, *, weights: Path, kernels: Kernels = "auto") -> None:
        self.config = config
        self.dim = model.config.hidden_size  # D
        self._dtype = model.dtype
        self._route = choose_encoder_route(model, kernels)
        self._weights = weights
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(config.max_tokens)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None, *, kernels: Kernels = "auto") -> Self:
        """Load an encoder from its folder.

        Args:
            folder: config.json, weights, tokenizer.json, and what sentence-transformers puts beside them.
            dtype: of weights and products; None takes bfloat16 where the processor multiplies it natively, else float32. Norms,
                softmax, sums and pooling are float32 either way.
            kernels: "native" and "torch" insist on one.

        Raises:
            ConfigError: kernels="native", and they cannot run this encoder here.
            CheckpointError: weights or settings cannot be used.
            TokenizerError: tokenizer.json is absent, broken or does not fit the model.
        """
        model = load_encoder(folder, dtype=dtype or fastest_dtype())
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{folder} has no tokenizer.json; an encoder needs one in the format of the tokenizers library")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise TokenizerError(f"{path} is not a tokenizer: {error}") from error
        if tokenizer.get_vocab_size() > model.config.vocab_size:
            raise TokenizerError(f"{path} has {tokenizer.get_vocab_size()} tokens, the model only {model.config.vocab_size}")
        config = EncoderConfig.read(folder, max_positions=model.config.max_positions)
        weights = next(folder / name for name in WEIGHT_FILES if (folder / name).is_file())
        return cls(model, tokenizer, config, weights=weights, kernels=kernels)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that it was loaded with."""
        return self._dtype

    @property
    def max_tokens(self) -> int:
        """Tokens of one text that are read, special tokens included."""
        return self.config.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole passage, its prompt and special tokens included; above `max_tokens`, the end is not read."""
        num_special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        return [
            len(encoding.ids) + sum(len(rest.ids) - num_special for rest in encoding.overflowing)
            for encoding in self._tokenizer.encode_batch_fast(self._as_read(texts, "passage"))
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Names weights, pooling, length and precision: vectors of different fingerprints are not to be compared."""
        with self._weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{digest[:16]}-{self.config.pooling}-{self.config.max_tokens}-{str(self._dtype).removeprefix('torch.')}"

    def encode(self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage") -> NDArray[np.float32]:
        """Unit vectors of texts, [N, D], in their order. Says in the log how many texts were cut; `embed` returns the number."""
        return self.embed(texts, kind=kind).vectors

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage") -> Embeddings:
        """Unit vectors of texts, in their order, with counts.

        By the native kernels a text's vector has the same bits whatever texts stand beside it; by torch the last bits may differ.

        Args:
            texts: any number; one that is longer than `config.max_tokens` tokens is cut.
            kind: which of the model's prompts goes before each text; most models have none.
        """
        encodings = self._tokenizer.encode_batch_fast(self._as_read(texts, kind))
        num_truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        if num_truncated:
            logger.warning("%d of %d texts are longer than %d tokens and were cut", num_truncated, len(texts), self.config.max_tokens)
        vectors = self._route.map(self._vectors, list(token_batches(encodings)))
        return Embeddings(
            np.concatenate(vectors) if vectors else np.zeros((0, self.dim), np.float32),
            sum(len(encoding.ids) for encoding in encodings),
            num_truncated,
        )

    def _as_read(self, texts: Sequence[str], kind: Literal["query", "passage"]) -> list[str]:
        prompt = self.config.prompts[kind]
        return [f"{prompt}{text.lower() if self.config.do_lower_case else text}" for text in texts]

    @torch.inference_mode()
    def _vectors(self, batch: Sequence[Encoding]) -> NDArray[np.float32]:
        """[N, D] of a few texts, whose tokens lie one after the other without padding."""
        lengths = [len(encoding.ids) for encoding in batch]
        token_ids = torch.tensor([token_id for encoding in batch for token_id in encoding.ids])
        positions = torch.tensor([position for length in lengths for position in range(length)])
        hidden: NDArray[np.float32] = self._route.hidden(token_ids, positions, lengths).numpy()  # [T, D]
        first = np.cumsum([0, *lengths[:-1]])
        # numpy, because torch would wake threads of its own beside the kernels'.
        pooled = hidden[first] if self.config.pooling == "cls" else np.add.reduceat(hidden, first) / np.array(lengths, np.float32)[:, None]
        return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def fastest_dtype() -> torch.dtype:
    """bfloat16 where this processor has instructions that multiply it (AVX512_BF16 or AMX), else float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that we run on
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32


def token_batches(encodings: Sequence[Encoding]) -> Iterator[list[Encoding]]:
    """In order, as many texts at a time as MAX_BATCH_TOKENS allows, and at least one."""
    batch: list[Encoding] = []
    num_tokens = 0
    for encoding in encodings:
        if batch and num_tokens + len(encoding.ids) > MAX_BATCH_TOKENS:
            yield batch
            batch, num_tokens = [], 0
        batch.append(encoding)
        num_tokens += len(encoding.ids)
    if batch:
        yield batch


def _read_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
