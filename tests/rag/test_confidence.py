"""How sure an answer is, from data. The judge is a sum that can be done by hand, a law, or a simulation with a known truth."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest

from tests.rag.passages import BLOCKS
from tripod.chat.scripted import ScriptedModel
from tripod.documents import Document
from tripod.errors import ConfigError
from tripod.messages import Message, Reply, TokenLogprob, Usage
from tripod.prompts import Prompt
from tripod.rag.answer import Answer
from tripod.rag.ask import ask
from tripod.rag.confidence import Calibration, answerability, fit, logit, signals, threshold_for_risk, upper_bound
from tripod.rag.extractive import Evidence
from tripod.retrieval.index import Index
from tripod.retrieval.yes_no import yes_of
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, Finished


def reply(*alternatives: tuple[str, float]) -> Reply:
    tokens = [TokenLogprob(number, text, text.encode(), math.log(p)) for number, (text, p) in enumerate(alternatives)]
    first = TokenLogprob(tokens[0].token_id, tokens[0].token, tokens[0].token_bytes, tokens[0].logprob, tuple(tokens))
    return Reply(message=Message("assistant", tokens[0].token), finish_reason="stop", usage=Usage(), logprobs=(first,))


def test_yes_is_the_share_of_its_spellings_among_both_words() -> None:
    assert yes_of(reply((" Yes", 0.3), ("no", 0.2), ("yes", 0.1), ("The", 0.4))) == pytest.approx(0.4 / 0.6)
    assert yes_of(reply(("y", 0.5), ("n", 0.25))) == pytest.approx(2 / 3)  # where a token is a byte
    assert yes_of(reply(("The", 0.9))) is None
    assert yes_of(Reply(message=Message("assistant", "yes"), finish_reason="stop", usage=Usage())) is None


def test_a_logistic_truth_is_found_again() -> None:
    generator = np.random.default_rng(7)
    values = generator.normal(size=(4000, 2))
    truth = 1 / (1 + np.exp(-(0.5 + 2.0 * values[:, 0] - 1.0 * values[:, 1])))
    is_right = [bool(right) for right in generator.random(4000) < truth]
    fitted = fit([{"a": float(a), "b": float(b)} for a, b in values], is_right)
    assert fitted.bias == pytest.approx(0.5, abs=0.15)  # four standard errors of 4,000 samples
    assert fitted.weights["a"] == pytest.approx(2.0, abs=0.25)
    assert fitted.weights["b"] == pytest.approx(-1.0, abs=0.2)
    mean = np.mean([fitted.confidence({"a": float(a), "b": float(b)}) for a, b in values])
    assert mean == pytest.approx(np.mean(is_right), abs=1e-6)  # a law of logistic regression with a free bias


def test_separable_samples_end_too() -> None:
    fitted = fit([{"a": 0.0}, {"a": 1.0}], [False, True])
    assert fitted.confidence({"a": 1.0}) > 0.9 > 0.1 > fitted.confidence({"a": 0.0})
    with pytest.raises(ConfigError, match="right and wrong"):
        fit([{"a": 0.0}, {"a": 1.0}], [True, True])


def test_no_error_in_ten_still_allows_a_quarter() -> None:
    assert upper_bound(0, 10, 0.05) == pytest.approx(1 - 0.05 ** (1 / 10))  # by hand: (1 - r)^10 = 0.05
    assert upper_bound(10, 10, 0.05) == 1.0
    assert upper_bound(1, 2, 0.05) == pytest.approx(math.sqrt(0.95))  # by hand: 1 - r^2 = 0.05


def test_a_promised_risk_is_kept_in_nineteen_of_twenty_samples() -> None:
    generator = np.random.default_rng(11)
    num_broken = num_given = 0
    for _ in range(200):
        confidence = generator.random(400)
        is_right = generator.random(400) < confidence  # calibrated: above t, the answers are wrong in (1 - t) / 2 of the cases
        threshold = threshold_for_risk(confidence.tolist(), is_right.tolist(), max_risk=0.2)
        if threshold is not None:
            num_given += 1
            num_broken += (1 - threshold) / 2 > 0.2
    assert num_given > 100
    assert num_broken <= 0.05 * 200


def test_what_cannot_be_vouched_for_has_no_threshold() -> None:
    assert threshold_for_risk([0.9] * 5, [True] * 5, max_risk=0.1) is None
    assert threshold_for_risk([0.9] * 300, [False] * 300, max_risk=0.1) is None
    assert threshold_for_risk([0.9] * 300, [True] * 300, max_risk=0.1) == 0.9
    assert threshold_for_risk([0.9] * 300, [True] * 150 + [False] * 150, max_risk=0.1) is None  # equals are given together


def test_a_calibration_is_kept_and_read_again(tmp_path: Path) -> None:
    kept = Calibration(weights={"coverage": 2.0}, bias=-1.0, threshold=0.3)
    kept.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == kept
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no calibration"):
        Calibration.load(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="no probability"):
        Calibration(weights={}, bias=0.0, threshold=2.0)


def test_signals_that_are_not_known_are_left_out() -> None:
    assert signals(Evidence(coverage=0.5, context=0.6, known=1.0), answerability=0.5) == {
        "coverage": 0.5,
        "context": 0.6,
        "known": 1.0,
        "answerability": 0.0,
    }
    assert signals(None)["coverage"] == 0.0
    assert logit(1.0) == pytest.approx(10, abs=0.01)


class Sure(ScriptedModel):
    """Answers "yes" with a probability of its own to whoever asks whether it can, and then says what it was told."""

    def __init__(self, yes: float) -> None:
        super().__init__(["In wind [1]."])
        self._yes = yes

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return reply(("yes", self._yes), ("no", 1 - self._yes))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        self.prompts.append(prompt)
        yield Delta(text="In wind [1].", logprobs=(TokenLogprob(0, "In", b"In", math.log(self._yes)),))
        yield Finished(finish_reason="stop", usage=Usage(), model="sure")


@pytest.mark.parametrize(("yes", "kind", "num_answers"), [(0.9, "generated", 1), (0.2, "abstained", 0)])
def test_a_model_that_doubts_is_not_asked_to_answer(yes: float, kind: str, num_answers: int, tmp_path: Path) -> None:
    model = Sure(yes)
    calibration = Calibration(weights={"answerability": 1.0}, bias=0.0)

    async def play() -> Answer:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.add([Document(source="dome", text="The dome closes in strong wind.")])
            return await ask("When does the dome close?", index, model=model, calibration=calibration)

    answer = asyncio.run(play())
    assert (answer.kind, len(model.prompts)) == (kind, num_answers)
    assert answer.confidence == pytest.approx(yes)
    assert "answerability" in [span.name for span in answer.trace]


def test_an_unlikely_answer_is_withdrawn(tmp_path: Path) -> None:
    async def play(yes: float) -> Answer:
        async with Index(tmp_path / f"{yes}.db", embedder=None) as index:
            await index.add([Document(source="dome", text="The dome closes in strong wind.")])
            calibration = Calibration(weights={"logprob": 1.0}, bias=1.0)
            return await ask("When does the dome close?", index, model=Sure(yes), calibration=calibration)

    assert asyncio.run(play(0.9)).kind == "generated"
    withdrawn = asyncio.run(play(0.05))
    assert (withdrawn.kind, withdrawn.citations) == ("abstained", ())
    assert withdrawn.confidence == pytest.approx(1 / (1 + math.exp(-(1 + math.log(0.05)))))


def test_the_model_is_shown_the_passages_and_asked_for_one_word() -> None:
    model = Sure(0.7)
    assert asyncio.run(answerability("When is a block freed?", [BLOCKS], model)) == pytest.approx(0.7)
