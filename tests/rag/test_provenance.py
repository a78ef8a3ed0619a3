"""From the sentence of an answer to the batch, and from the batch to the sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

import tripod
from tests.rag.planted import HANDBOOK, NUM_STEPS, QUESTION, SENTENCE, Planted
from tripod.engine.step_record import StepRecord
from tripod.rag.answer import Answer
from tripod.rag.ask import ask
from tripod.rag.provenance import trace_answer
from tripod.retrieval.index import Index
from tripod.training.data.order import Place
from tripod.training.ngrams.provenance import Provenance


@pytest.fixture(scope="module")
def provenance(planted: Planted) -> Provenance:
    return Provenance.open(planted.address)


@pytest.fixture(scope="module")
def played(planted: Planted, provenance: Provenance, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, tuple[StepRecord, ...]]:
    """The answer, and the engine's steps."""

    async def play() -> tuple[Answer, tuple[StepRecord, ...]]:
        from tripod.chat.local import LocalChatModel
        from tripod.engine.engine import Engine

        async with Index(tmp_path_factory.mktemp("kb") / "kb.db", embedder=None) as index, Engine.load(planted.address) as engine:
            await index.sync(HANDBOOK)
            model = LocalChatModel(engine, chat_template="plain")
            answer = await ask(QUESTION, index, model=model, k=1, max_tokens=60, provenance=provenance)
            return answer, engine.recent_steps()

    return tripod.run(play())


def test_the_chain_leads_from_the_sentence_to_the_batch(
    played: tuple[Answer, tuple[StepRecord, ...]], planted: Planted, provenance: Provenance
) -> None:
    answer, steps = played
    [origin] = answer.origins
    assert SENTENCE in answer.text[origin.start : origin.end]
    # passage
    places = {(citation.source, citation.line) for citation in origin.citations if citation.is_quotation}
    assert places == {("telescope.rst", 4)}
    assert SENTENCE in (HANDBOOK / "telescope.rst").read_text().splitlines()[3]
    # engine: one step a token, behind the step that read the prompt
    assert provenance.tokenizer.decode(origin.token_ids).strip() == answer.text
    by_id = {record.id: record for record in steps}
    assert len(origin.step_ids) == len(origin.token_ids)
    assert [by_id[step].num_decode_tokens for step in origin.step_ids[1:]] == [1] * (len(origin.step_ids) - 1)
    # model, and the steps, rows and columns of its training
    assert origin.model == f"{planted.run.folder}@step{NUM_STEPS}"
    [span] = [span for span in origin.trace.spans if SENTENCE in span.text]
    order = planted.run.order()
    for one in span.seen:
        batch = order.batch_at(one.step)
        row = batch[one.place.row - order.rows_of_step(one.step).start]
        assert row[one.place.column : one.place.column + span.num_tokens].tolist() == list(span.ids)


def _reads(planted: Planted, provenance: Provenance, ids: list[int]) -> set[tuple[int, Place]]:
    """By the documents: wherever one holds the ids, each time that the order reads that place whole."""
    order = planted.run.order()
    found: set[tuple[int, Place]] = set()
    for document in range(len(provenance.tables[0])):
        tokens = order.rows.store.tokens(document).tolist()  # type: ignore[attr-defined]
        for offset in range(len(tokens) - len(ids) + 1):
            if tokens[offset : offset + len(ids)] == ids:
                found.update(
                    (step, place)
                    for step, place in order.steps_of(document, offset)
                    if step < NUM_STEPS and place.column + len(ids) <= order.rows.seq_length + 1
                )
    return found


def test_the_chain_leads_from_the_planted_documents_back_to_the_sentence(planted: Planted, provenance: Provenance) -> None:
    as_text = {span.text: span for span in provenance.trace(SENTENCE).spans}
    for spelling, kind in ((SENTENCE, "conversations"), (f" {SENTENCE}", "logs")):
        span = as_text[spelling]
        expected = _reads(planted, provenance, provenance.tokenizer.encode(spelling, add_special_tokens=False))
        assert {(one.step, one.place) for one in span.seen} == expected
        assert len(span.seen) == len(expected) > 0
        lines = {record.line for one in span.seen if (record := provenance.record(one)) is not None}
        assert lines <= set(planted.note_lines) if kind == "logs" else not lines & set(planted.note_lines)


def test_a_sentence_that_was_not_in_training_has_no_step(provenance: Provenance, tmp_path: Path) -> None:
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "tale.md").write_text("# Magic\n\nForty glum wizards vexed a quick jackdaw behind Zanzibar.\n", encoding="utf-8")

    async def play() -> Answer:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.sync(tmp_path / "tales")
            return await ask("Who vexed a quick jackdaw?", index, provenance=provenance)

    answer = tripod.run(play())
    assert "wizards" in answer.text
    [origin] = answer.origins
    assert origin.trace.spans == ()
    assert (origin.step_ids, origin.token_ids) == ((), ())
    assert {(citation.source, citation.line) for citation in origin.citations} == {("tale.md", 3)}


def test_a_marker_behind_a_stop_belongs_to_the_sentence_before_it(provenance: Provenance) -> None:
    answer = Answer(question="?", text="\u201cThe dome closes.\u201d [1] \u201cIt opens again.\u201d [2, 3]", kind="extractive")
    assert [answer.text[one.start : one.end] for one in trace_answer(answer, provenance)] == [
        "\u201cThe dome closes.\u201d",
        "\u201cIt opens again.\u201d",
    ]


def test_an_earlier_checkpoint_had_read_the_sentence_less_often(planted: Planted, provenance: Provenance) -> None:
    early = Provenance.open(f"{planted.run.folder}@step{NUM_STEPS // 2}")
    [before, after] = [one.trace(SENTENCE).longest for one in (early, provenance)]
    assert before is not None
    assert after is not None
    assert 0 < len(before.seen) < len(after.seen)
    assert len(before.seen) + before.num_later == len(after.seen)
