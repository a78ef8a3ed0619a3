"""`tripod study routing`, from checkpoints to table and picture: on a sparse model into which a specialist was built."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tripod
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.routing.routed import Routed
from tripod.analysis.routing.study import RULES, RoutingStudy
from tripod.analysis.study import Finding, run_study
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
    """Two checkpoints with the specialist and two without; texts whose classes have words of their own, the same, or the same and more of
    their own."""
    folder = tmp_path_factory.mktemp("routing")
    drawn = random.Random(1)
    everything = "".join(WORDS.values())
    for kind in ("different", "same", "shared"):
        (folder / kind).mkdir()
        for name, alphabet in WORDS.items():
            letters = {"different": alphabet, "same": everything, "shared": everything + 2 * alphabet}[kind]
            (folder / kind / f"{name}.txt").write_text("".join(drawn.choices(letters, k=600)))
    for step, seed in ((0, 1), (4, 2)):
        checkpoint(folder / "run" / f"step{step}", seed)
        checkpoint(folder / "control" / f"step{step}", seed, planted=False)
    return folder


def study_of(world: Path, out: Path, texts: str, run: str = "run", **settings: object) -> Finding:
    study = RoutingStudy(texts=(str(world / texts),), **(SETTINGS | settings))  # type: ignore[arg-type]
    return tripod.run(run_study(study, find_checkpoints([str(world / run)]), out, kept=world / "measured"))


def found(world: Path, out: Path, texts: str, **settings: object) -> Table:
    return study_of(world, out, texts, **settings).table


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


def test_random_routers_are_reported_as_unspecialised_where_classes_have_the_same_words(world: Path, tmp_path: Path) -> None:
    finding = study_of(world, tmp_path, "same", "control")
    assert len(finding.table.where(measure="specialist")) == 0
    for remark, step in zip(finding.remarks[:2], (0, 4), strict=True):
        assert remark.startswith(f"control, step {step}: unspecialised by domain (p = 0.")
    assert study_of(world, tmp_path, "different").remarks[1].startswith("run, step 4: specialised by domain (p = 0.016)")  # 1 / 61


def test_what_random_routers_tell_of_classes_is_said_to_be_their_words(world: Path, tmp_path: Path) -> None:
    first, last, _ = study_of(world, tmp_path, "different", "control").remarks
    words = "token ids alone give 100% of the divergence of frequent tokens, context and chance the rest"  # no letter is in two classes
    assert first == (
        f"control, step 0: specialised by domain (p = 0.016); {words}. "
        "Routers are random at step 0: they tell classes by the words in them, and have learnt nothing."
    )
    assert last == f"control, step 4: specialised by domain (p = 0.016); {words}."
    first = study_of(world, tmp_path, "shared", "control").remarks[0]  # what stands around a letter tells of its class as well
    share = re.search(r"specialised by domain .* token ids alone give (\d+)%", first)
    assert share is not None
    assert int(share[1]) < 60


def test_rows_of_one_text_are_said_to_make_p_too_small(world: Path, tmp_path: Path) -> None:
    files = study_of(world, tmp_path / "files", "different")
    said = "The rows of capitals, digits, letters are cut from one text each and resemble each other: p is too small. Give many documents."
    assert files.remarks[2:] == (said,)
    assert said in json.loads((tmp_path / "files" / "study.json").read_text(encoding="utf-8"))["remarks"]
    assert f"<!-- {said} -->" in (tmp_path / "files" / "plot.svg").read_text(encoding="utf-8")
    lines = [{"text": letters * 8, "domain": name} for name, letters in WORDS.items() for _ in range(12)]
    (world / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    many = study_of(world, tmp_path / "lines", "lines.jsonl")
    assert len(many.remarks) == 2
    assert many.table.where(measure="texts of a class", group="digits").numbers("value") == [7.0]  # 8 rows of 64 bytes, 80 a text


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


def test_too_few_permutations_for_any_verdict_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_permutations=18 cannot give a p below 0\.05; give 19 or more"):
        RoutingStudy(num_permutations=18)
    RoutingStudy(num_permutations=19)
