"""`tripod checkpoint`: what transformers wrote comes back from us byte for byte, by either format."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import Command

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(params=["gpt_neox", "llama"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint in float16 that transformers saved."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
    if request.param == "gpt_neox":
        config = transformers.GPTNeoXConfig(**sizes, intermediate_size=128, tie_word_embeddings=False)
        model = transformers.GPTNeoXForCausalLM(config)
    else:
        config = transformers.LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=False)
        model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    model.half().save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_import_then_export_gives_every_tensor_byte_for_byte(tripod: Command, published: Path, tmp_path: Path) -> None:
    imported = tripod("checkpoint", "import", published, "--out", tmp_path / "ours")
    assert imported.code == 0, imported.err
    assert "parameters, float16" in imported.out
    assert "has no tokenizer" in imported.err
    assert tripod("checkpoint", "export", tmp_path / "ours", "--out", tmp_path / "theirs").code == 0
    assert bytes_of(tmp_path / "theirs") == bytes_of(tmp_path / "ours") == bytes_of(published)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected, logits = (
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
            for folder in (published, tmp_path / "theirs")
        )
    assert torch.equal(logits, expected)
    assert tripod("checkpoint", "import", published, "--out", tmp_path / "ours").code == 2  # it holds one


def test_by_way_of_gpt_neoxs_files_too(tripod: Command, published: Path, tmp_path: Path) -> None:
    exported = tripod("checkpoint", "export", published, "--format", "neox", "--parts", "2", "--step", "7", "--out", tmp_path / "neox")
    if published.name == "llama":
        assert exported.code == 2
        assert "is a Llama; only GPT-NeoX models" in exported.err
        return
    assert exported.code == 0, exported.err
    assert tripod("checkpoint", "import", tmp_path / "neox" / "global_step7", "--out", tmp_path / "ours").code == 0
    assert bytes_of(tmp_path / "ours") == bytes_of(published)
    half = tripod("checkpoint", "export", tmp_path / "ours", "--dtype", "float32", "--out", tmp_path / "wide")
    assert "float32" in half.out
    assert {tensor.dtype for tensor in load_file(tmp_path / "wide" / "model.safetensors").values()} == {torch.float32}
