"""The cross-encoder against transformers' BertForSequenceClassification, on tiny random weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import BertConfig, BertForSequenceClassification

from tests.engine.test_encode import write_encoder
from tripod.documents import Passage
from tripod.engine.cross_encode import CrossEncoder
from tripod.errors import CheckpointError
from tripod.retrieval.local_reranker import LocalReranker
from tripod.retrieval.rerank import rerank

TEXTS = ["a b c", "q", "the quick brown fox", "", "z y x w v u t s", "m " * 60, "b"]


def write_cross_encoder(folder: Path, *, num_labels: int = 1) -> BertForSequenceClassification:
    write_encoder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(5)
    config = BertConfig.from_pretrained(folder, num_labels=num_labels)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    model.save_pretrained(folder)
    return model


def test_scores_are_the_logits_of_transformers_in_their_order(tmp_path: Path) -> None:
    theirs = write_cross_encoder(tmp_path)
    ours = CrossEncoder.load(tmp_path, dtype=torch.float32).score("a quick b", TEXTS)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(48, strategy="longest_first")
    for text, score in zip(TEXTS, ours, strict=True):
        encoding = tokenizer.encode("a quick b", text)
        inputs = {"input_ids": torch.tensor([encoding.ids]), "token_type_ids": torch.tensor([encoding.type_ids])}
        with torch.no_grad():
            assert score == pytest.approx(theirs(**inputs).logits.item(), abs=2e-5)
    assert len({round(score, 3) for score in ours}) > 4
    assert CrossEncoder.load(tmp_path).score("a", []) == []


def test_it_reranks_passages(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path)
    passages = [Passage(source=str(number), start=0, end=len(text), text=text) for number, text in enumerate(TEXTS)]
    scores = CrossEncoder.load(tmp_path).score("a quick b", TEXTS)
    found = asyncio.run(rerank("a quick b", passages, LocalReranker(tmp_path), k=3))
    assert [int(one.source) for one in found] == sorted(range(len(TEXTS)), key=lambda index: -scores[index])[:3]


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no bert\.pooler\.dense"):
        CrossEncoder.load(write_encoder(tmp_path / "encoder"))
    write_cross_encoder(tmp_path / "classes", num_labels=3)
    with pytest.raises(CheckpointError, match="3 classes"):
        CrossEncoder.load(tmp_path / "classes")
    with pytest.raises(CheckpointError, match="holds no cross-encoder"):
        LocalReranker(tmp_path / "nothing")
