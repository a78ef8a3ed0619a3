"""`tripod study routing`, from checkpoints to table and picture: on a sparse model into which a specialist was built."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

import tripod
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.routing.routed import Routed
from tripod.analysis.routing.study import RULES, RoutingStudy
from tripod.analysis.study import run_study
from tripod.errors import ConfigError
from tripod.evaluation.table import Table
from tripod.models.initialize import random_language_model
from tripod.models.llama import LlamaConfig
from tripod.models.moe import Router
from tripod.models.save import save_checkpoint
from tripod.models.sparse_llama import SparseLlama, SparseLlamaConfig
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer

SPECIALIST, NUM_EXPERTS, TOP_K = 3, 8, 2
WORDS = {"digits": "0123456789", "letters": "abcdefghijklm", "capitals": "ABCDEFGHIJKLM"}
SETTINGS = {"num_rows": 8, "row_tokens": 64, "min_tokens": 16, "num_permutations": 60}


def checkpoint(folder: Path, seed: int, *, planted: bool = True) -> None:
    """A sparse Llama of two layers. Planted: the embeddings of digits share a direction, to which expert 3's router answers."""
    config = SparseLlamaConfig.from_hf(
        {
            "model_type": "mixtral", "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 128, "num_local_experts": NUM_EXPERTS,
            "num_experts_per_tok": TOP_K,
        }
    )  # fmt: skip
    model = random_language_model(config, seed)
    assert isinstance(model, SparseLlama)
    write_byte_tokenizer(folder)
    if planted:
        digits = load_tokenizer(folder).encode(WORDS["digits"], add_special_tokens=False)
        with torch.no_grad():
            model.embedding.weight[:, 0] = -10.0
            model.embedding.weight[digits, 0] = 10.0
            for router in model.modules():
                if isinstance(router, Router):
                    router.weight[SPECIALIST, 0] = 10.0
    save_checkpoint(model, folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of two checkpoints, and texts whose classes have words of their own, or the same."""
    folder = tmp_path_factory.mktemp("routing")
    drawn = random.Random(1)
    for kind in ("different", "same"):
        (folder / kind).mkdir()
        for name, alphabet in WORDS.items():
            letters = alphabet if kind == "different" else "".join(WORDS.values())
            (folder / kind / f"{name}.txt").write_text("".join(drawn.choices(letters, k=600)))
    for step, seed in ((0, 1), (4, 2)):
        checkpoint(folder / "run" / f"step{step}", seed)
    return folder


def found(world: Path, out: Path, texts: str, **settings: object) -> Table:
    study = RoutingStudy(texts=(str(world / texts),), **(SETTINGS | settings))  # type: ignore[arg-type]
    return tripod.run(run_study(study, find_checkpoints([str(world / "run")]), out, kept=world / "measured")).table


@pytest.fixture(scope="module")
def table(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return found(world, tmp_path_factory.mktemp("out"), "different")


def test_the_specialist_that_was_built_in_is_found_in_both_layers_and_checkpoints(table: Table) -> None:
    for step in (0, 4):
        for layer in (0, 1):
            first = table.where(measure="specialist", step=step, layer=layer, group="digits", expert=SPECIALIST)
            [share] = first.numbers("value")
            assert share == pytest.approx(1 / TOP_K)  # every digit's first choice
            assert first.numbers("chance") == [0.0]  # of all others, no choice
            assert first.numbers("p")[0] <= 0.05


def test_texts_that_differ_by_name_alone_have_no_specialist(world: Path, tmp_path: Path) -> None:
    table = found(world, tmp_path, "same")
    assert len(table.where(measure="specialist")) == 0
    assert all(p > 0.05 for p in table.where(lambda row: row["measure"] == "divergence" and row["layer"] is None).numbers("p"))
    for row in table.where(measure="divergence of frequent tokens", step=4):
        assert float(row["value"] or 0) < 0.02


def test_every_figure_of_routing_is_in_the_table_and_the_picture_is_drawn(table: Table, world: Path, tmp_path: Path) -> None:
    for layer in (0, 1):
        of_layer = table.where(layer=layer, step=4)
        assert sum(of_layer.where(measure="load").numbers("value")) == pytest.approx(1.0)
        assert of_layer.where(measure="overlap with the last").numbers("value") == [1.0]
        assert of_layer.where(measure="divergence of token ids from the last").numbers("value") == [0.0]
        assert set(of_layer.where(measure="spread").column("group")) == {"token id", "position", "domain"}
        tops = of_layer.where(measure="top token", expert=SPECIALIST)
        assert set(tops.column("group")) == set(WORDS["digits"])
        assert set(of_layer.where(measure="dropped").column("group")) == set(RULES)
    assert table.where(measure="overlap with the last", step=0, layer=0).numbers("value")[0] < 1.0
    found(world, tmp_path, "different")
    assert (tmp_path / "plot.png").stat().st_size > 20_000


def test_capacity_drops_the_end_of_a_row_of_which_all_tokens_want_one_expert(table: Table) -> None:
    """A row of 64 digits: with factor 1.25 expert 3 has room for 10 (64 x 1.25 / 8) or 20 (twice that) of 64 first choices."""
    for rule, room in (("per-token", 10), ("per-assignment", 20)):
        dropped = table.where(measure="dropped", group=rule, step=4, layer=0).sorted_by("x")
        values = dropped.numbers("value")
        assert values[0] < values[-1]
        assert np.mean(values) >= (64 - room) / 64 / TOP_K / 3 * 0.99  # of the choices, in one of three classes at least


def test_what_was_measured_is_read_back_as_it_was(world: Path, tmp_path: Path) -> None:
    study = RoutingStudy(texts=(str(world / "different"),), **SETTINGS)  # type: ignore[arg-type]
    [last] = find_checkpoints([str(world / "run")], steps=[4])
    measured = tripod.run(study.measure(last, lambda *_: None))
    routed = Routed.of(measured)
    assert routed.table() == measured
    measured.write(tmp_path / "measured.jsonl")
    assert Table.read(tmp_path / "measured.jsonl") == measured
    assert routed.experts.shape == (2, 3 * 8 * 64, TOP_K)
    assert np.allclose(routed.weights.sum(-1), 1.0, atol=1e-3)  # records keep float16


def test_a_dense_model_is_refused(tmp_path: Path, world: Path) -> None:
    sizes = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dense = LlamaConfig.from_hf({"model_type": "llama", **sizes})
    write_byte_tokenizer(tmp_path)
    save_checkpoint(random_language_model(dense, 0), tmp_path)
    [model] = find_checkpoints([str(tmp_path)])
    with pytest.raises(ConfigError, match="dense"):
        tripod.run(RoutingStudy(texts=(str(world / "same"),), **SETTINGS).measure(model, lambda *_: None))  # type: ignore[arg-type]
