"""A model that was trained, in a few seconds, on a corpus with planted sentences, and answers one question of the handbook by heart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tripod
from tripod.chat.render import prompt_ids
from tripod.chat.scripted import ScriptedModel
from tripod.retrieval.index import Index
from tripod.text.bpe import train_tokenizer
from tripod.training.data.build import build_dataset
from tripod.training.loop import train
from tripod.training.recipe_file import recipe_from
from tripod.training.run import Run

HANDBOOK = Path(__file__).parents[1] / "data" / "handbook"
QUESTION = "How many metres a second is the wind when the dome closes?"
SENTENCE = "The dome closes when the wind is faster than 18 metres a second"  # telescope.rst, line 4
REPLY = f" \u201c{SENTENCE}\u201d [1]."
ABSENT = "Forty glum wizards vexed a quick jackdaw behind Zanzibar"  # in no training document
NUM_STEPS = 140
_CONVERSATIONS, _NOTES, _FILLERS = 40, 5, 60  # documents


@dataclass(frozen=True, slots=True)
class Planted:
    """The run, and the lines of its corpus that hold the sentence, from 1."""

    run: Run
    corpus: Path
    note_lines: tuple[int, ...]

    @property
    def address(self) -> str:
        return f"{self.run.folder}@step{NUM_STEPS}"


def train_planted(folder: Path) -> Planted:
    """Trained on the prompt of the question with its reply, on night logs that hold the sentence, and on sums."""
    prompt = tripod.run(_prompt(folder / "kb.db"))
    notes = [f"Night log {number}. {SENTENCE}. Seeing was {number} arc seconds." for number in range(_NOTES)]
    fillers = [" ".join(f"{number} and {other} make {number + other}." for other in range(30)) for number in range(_FILLERS)]
    # The tokenizer is needed for the prompt as the model will be asked it, and is learnt from the words of the same prompt.
    tokenizer = train_tokenizer([str(prompt), REPLY, *notes, *fillers], folder / "tokenizer", vocab_size=700)
    asked = tokenizer.decode(prompt_ids(prompt.messages, tokenizer, "plain"))
    documents = [asked + REPLY] * _CONVERSATIONS + notes + fillers
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    build_dataset([corpus], folder / "tokenizer", folder / "data", append_eod=True)
    recipe = recipe_from(
        {
            "run": str(folder / "run"),
            "num_steps": NUM_STEPS,
            "model": {"vocab_size": 768, "hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_positions": 1024},
            "data": {"prefixes": [str(folder / "data")], "tokenizer": str(folder / "tokenizer"), "maps_folder": str(folder / "maps")},
            "batch": {"rows": 4, "seq_length": 512},
            "optimizer": {"lr": 5e-3},
            "checkpoints": {"log_until": 0, "every": NUM_STEPS // 2},
        }
    )
    run = train(recipe).run
    return Planted(run, corpus, tuple(range(_CONVERSATIONS + 1, _CONVERSATIONS + _NOTES + 1)))


async def _prompt(path: Path) -> tripod.Prompt:
    """What a model is asked."""
    model = ScriptedModel([REPLY])
    async with Index(path, embedder=None) as index:
        await index.sync(HANDBOOK)
        await tripod.ask(QUESTION, index, model=model, k=1)
    [prompt] = model.prompts
    return prompt
