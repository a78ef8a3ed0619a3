"""Scores a question and a passage read together, by a BERT cross-encoder (Nogueira & Cho 2019, arXiv:1901.04085)."""

# N pairs, T tokens of them all, D hidden size

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn

from tripod.engine.encode import fastest_dtype, token_batches
from tripod.engine.encoder_route import choose_encoder_route
from tripod.errors import CheckpointError, TokenizerError
from tripod.models.bert import Bert
from tripod.models.load import load_cross_encoder


class CrossEncoder:
    """A BERT with a head of one score, and its tokenizer; the layout is that of transformers' BertForSequenceClassification."""

    def __init__(self, model: Bert, pooler: nn.Linear, classifier: nn.Linear, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        self.max_tokens = max_tokens  # of question and passage together; the longer of the two is cut
        self._pooler = pooler
        self._classifier = classifier
        self._tokenizer = tokenizer
        self._route = choose_encoder_route(model)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens, strategy="longest_first")

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """Load a cross-encoder from its folder.

        Args:
            folder: config.json, weights and tokenizer.json.
            dtype: of the encoder; None takes bfloat16 where the processor multiplies it natively. The head is float32.

        Raises:
            CheckpointError: the weights cannot be used, or their head gives other than one score.
            TokenizerError: tokenizer.json is absent or broken.
        """
        model, pooler, classifier = load_cross_encoder(folder, dtype=dtype or fastest_dtype())
        if classifier.out_features != 1:
            raise CheckpointError(f"{folder} tells {classifier.out_features} classes apart; a cross-encoder gives one score")
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises Exception itself
            raise TokenizerError(f"{folder} has no tokenizer.json that can be used: {error}") from error
        return cls(model, pooler, classifier, tokenizer, max_tokens=model.config.max_positions)

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        """The logit of each text for the question, in their order; larger is better."""
        encodings = self._tokenizer.encode_batch_fast([(question, text) for text in texts])
        order = sorted(range(len(encodings)), key=lambda index: len(encodings[index].ids))  # neighbours of one length share a batch well
        batches = list(token_batches([encodings[index] for index in order]))
        scores = torch.cat(self._route.map(self._scores, batches)).tolist() if batches else []
        placed = [0.0] * len(scores)
        for index, score in zip(order, scores, strict=True):
            placed[index] = score
        return placed

    @torch.inference_mode()
    def _scores(self, batch: Sequence[Encoding]) -> Tensor:
        """[N] of a few pairs, whose tokens lie one after the other without padding."""
        lengths = [len(encoding.ids) for encoding in batch]
        token_ids = torch.tensor([token_id for encoding in batch for token_id in encoding.ids])
        token_types = torch.tensor([kind for encoding in batch for kind in encoding.type_ids])
        positions = torch.tensor([position for length in lengths for position in range(length)])
        hidden = self._route.hidden(token_ids, positions, lengths, token_types=token_types)  # [T, D]
        first = torch.stack([state[0] for state in torch.split(hidden, lengths)])  # [N, D]
        return self._classifier(torch.tanh(self._pooler(first))).squeeze(-1)  # type: ignore[no-any-return]
