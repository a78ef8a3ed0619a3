"""Our language models against transformers', on tiny random checkpoints that transformers wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models import reference
from tripod.models.initialize import random_language_model
from tripod.models.language_model import LanguageModel
from tripod.models.load import load_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention

PROMPTS = torch.randint(reference.VOCAB, (20, 10), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def our_logits(model: LanguageModel, token_ids: Tensor) -> Tensor:
    positions = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    return model.logits(model.hidden(token_ids, positions, causal_attention))


@pytest.mark.parametrize("case", reference.CASES)
def test_logits_and_64_greedy_tokens_of_20_prompts_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = reference.save(case, tmp_path)
    texts = reference.greedy(theirs, PROMPTS, 64)
    logits = our_logits(load_language_model(tmp_path), texts)
    assert (logits - reference.logits(theirs, texts)).abs().max() < 1e-4
    # Every prefix of their texts is continued as they did, so our greedy texts are the same by induction.
    assert torch.equal(logits[:, 9:-1].argmax(-1), texts[:, 10:])
    assert len(texts[:, 10:].unique()) > 20  # the texts are not one token repeated


@pytest.mark.parametrize("case", ["gpt_neox parallel", "llama tied", "mistral with a window", "qwen3"])
def test_a_batch_of_ragged_tokens_gives_what_padded_sequences_give(case: str, tmp_path: Path) -> None:
    reference.save(case, tmp_path)
    model = load_language_model(tmp_path)

    def attend_within_sequence(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        """The tokens of all prompts in one row, as the engine lays them; here each prompt attends by itself."""
        parts = [tensor.unflatten(0, PROMPTS.shape) for tensor in (query, key, value)]
        return causal_attention(layer, *parts, scale=scale, window=window).flatten(0, 1)

    positions = torch.arange(PROMPTS.shape[1]).repeat(len(PROMPTS))
    with torch.inference_mode():
        flat = model.logits(model.hidden(PROMPTS.flatten(), positions, attend_within_sequence))
    assert torch.allclose(flat.unflatten(0, PROMPTS.shape), our_logits(model, PROMPTS), atol=1e-5)


@pytest.mark.parametrize("case", reference.CASES)
def test_what_we_save_opens_in_transformers_with_the_same_logits(case: str, tmp_path: Path) -> None:
    theirs = reference.save(case, tmp_path / "theirs")
    ours = load_language_model(tmp_path / "theirs")
    save_checkpoint(ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert torch.equal(reference.logits(again, PROMPTS), reference.logits(theirs, PROMPTS))
    assert load_language_model(tmp_path / "ours").config == ours.config


def test_the_older_spelling_of_rotary_embeddings_is_read_too(tmp_path: Path) -> None:
    for case, older in (
        ("llama with scaled rope", {"rope_theta": 500_000.0, "rope_scaling": {**reference.LLAMA3_ROPE, "type": "llama3"}}),
        ("gpt_neox parallel", {"rotary_emb_base": 10_000, "rotary_pct": 0.25}),
    ):
        theirs = reference.save(case, tmp_path / case)
        path = tmp_path / case / "config.json"
        config = json.loads(path.read_text())
        del config["rope_parameters"]
        path.write_text(json.dumps(config | older))
        logits = our_logits(load_language_model(tmp_path / case), PROMPTS)
        assert (logits - reference.logits(theirs, PROMPTS)).abs().max() < 1e-4


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    theirs = reference.save("llama", tmp_path)
    model = load_language_model(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    logits, exact = our_logits(model, PROMPTS).float(), reference.logits(theirs, PROMPTS)
    assert (logits - exact).norm() / exact.norm() < 2e-2  # bfloat16 keeps 8 bits


def test_a_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    reference.save("qwen2", tmp_path)
    config = load_language_model(tmp_path).config
    first, again, other = (our_logits(random_language_model(config, seed), PROMPTS) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)
