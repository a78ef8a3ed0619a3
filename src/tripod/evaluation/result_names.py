"""What was evaluated, from the name of a result file and what the file says of its configuration.

Pythia's published files (1,823 of them) say it in a dozen ways, some of them wrong:

- sizes have two generations of names: 19m, 125m, 350m, 800m, 1.3b, 2.7b, 6.7b, 13b are 70m, 160m, 410m, 1b, 1.4b, 2.8b, 6.9b, 12b;
- `pythia-1b-bf16` is the standard 1b: there is no other;
- four zero-shot files of it are named 5shot, and most five-shot files of v0 say num_fewshot=0: the folder is right;
- the WinoBias baselines are called 1.4B and are of the deduplicated 1.4b: only their configuration says so;
- a step of the 4M-token batches of v0 (160m, 410m, 1.4b) trains twice as much as one of the others, and the ablations with smaller
  batches count steps of their own: `tokens` is what can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

OLD_SIZES = {
    "19m": "70m", "125m": "160m", "350m": "410m", "800m": "1b", "1.3b": "1.4b", "2.7b": "2.8b", "6.7b": "6.9b", "13b": "12b",
}  # fmt: skip
BATCH_TOKENS = 1024 * 2048  # of the suite: what one step trains on
_HALF_STEPS = ("160m", "410m", "1.4b")  # of v0: 4M tokens a batch
_BIAS_HALF_STEPS = ("410m", "1.4b")  # the same runs in bias-evals, by the old names 350m and 1.3b
_SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?[mb])(?![a-z])", re.IGNORECASE)
_BATCH = re.compile(r"(\d+(?:\.\d+)?)mtokbs", re.IGNORECASE)
_STEP = re.compile(r"step_?(\d+)")
_LAST_NUMBER = re.compile(r"_(\d+)$")
_REVISION = re.compile(r"revision=([^,]+)")
_PRETRAINED = re.compile(r"pretrained=([^,]+)")
_SEED = re.compile(r"(?:data-|weight-)?seed\d+")
_FOLDERS = {"zero-shot": 0, "five-shot": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What a result is of. None: nothing says it."""

    suite: str | None  # pythia-v0, pythia-v1, bias-evals; None of files that are not Pythia's
    model: str  # pythia-1.4b-deduped, whatever the file calls it; else the model's own name
    size: str | None
    deduped: bool | None
    run: str  # base | intervention | long-intervention
    variant: str  # batch of an ablation, seed of a PolyPythias run, "baseline" of an intervention (a model evaluated once more); ""
    step: int | None
    tokens: int | None  # trained on so far; of Pythia
    shots: int | None


def evaluated(path: str, config: Mapping[str, Any]) -> Evaluated:
    """What a result file is of.

    Args:
        path: of the file, with the folders above it where they matter, as in the repository that published it.
        config: what lm-eval wrote under `config`; may be empty.
    """
    parts = PurePosixPath(path.replace("\\", "/")).parts
    name = parts[-1].removesuffix(".gz").removesuffix(".json") if parts else ""
    arguments = config.get("model_args")
    neox: Mapping[str, Any] = arguments if isinstance(arguments, Mapping) and "iteration" in arguments else {}
    told, revision = _told(arguments)
    suite = next((part for part in parts if part in ("pythia-v0", "pythia-v1", "bias-evals")), None)
    step = _step(name, revision, neox)
    shots = next((_FOLDERS[part] for part in reversed(parts) if part in _FOLDERS), None)
    if shots is None:
        shots = int(config["num_fewshot"]) if config.get("num_fewshot") is not None else (5 if "5shot" in name else None)
    if suite is None and "pythia" not in f"{path} {told}".lower():
        return Evaluated(
            suite=None, model=told or name, size=None, deduped=None, run="base", variant="", step=step, tokens=None, shots=shots
        )
    below = "/".join(parts[parts.index(suite) + 1 :]) if suite is not None else f"{told} {name}"
    sources = (below, str(neox.get("load") or neox.get("save") or ""))
    given = next((match[1].lower() for source in sources if (match := _SIZE.search(_BATCH.sub("", source)))), None)
    size = OLD_SIZES.get(given, given) if given is not None else None
    deduped = any("dedup" in source.lower() for source in sources)
    batch = _BATCH.search(below)
    seed = _SEED.search(f"{below} {told}")
    variant = f"{batch[1]}M-token batches" if batch else seed[0] if seed else "baseline" if "baseline" in parts else ""
    per_step = round(float(batch[1]) * 2**20) if batch else BATCH_TOKENS
    has_half_steps = size in _HALF_STEPS if suite == "pythia-v0" else suite == "bias-evals" and given != size and size in _BIAS_HALF_STEPS
    if has_half_steps:
        per_step *= 2
    return Evaluated(
        suite=suite,
        model=f"pythia-{size}{f'-{seed[0]}' if seed else ''}{'-deduped' if deduped else ''}",
        size=size,
        deduped=deduped,
        run=_run(parts, name),
        variant=variant,
        step=step,
        tokens=None if step is None else step * per_step,
        shots=shots,
    )


def _told(arguments: object) -> tuple[str, str]:
    """Name and revision of the model among the arguments of lm-eval's, which are text or, since 0.4.10, a table."""
    if isinstance(arguments, Mapping):
        return str(arguments.get("pretrained") or arguments.get("model") or ""), str(arguments.get("revision") or "")
    if not isinstance(arguments, str):
        return "", ""
    name = _PRETRAINED.search(arguments)
    revision = _REVISION.search(arguments)
    return name[1] if name else arguments.split(",")[0], revision[1] if revision else ""


def _step(name: str, revision: str, neox: Mapping[str, Any]) -> int | None:
    for text in (name, revision):
        if match := _STEP.search(text):
            return int(match[1])
    if neox.get("iteration") is not None:
        return int(neox["iteration"])
    match = _LAST_NUMBER.search(name)
    return int(match[1]) if match and "T" not in name else None


def _run(parts: tuple[str, ...], name: str) -> str:
    if name.startswith("long-intervention") or "intervene_21" in parts or (name.startswith("intervention") and "-long_" in name):
        return "long-intervention"
    return "intervention" if name.startswith("intervention") or "intervene_7" in parts else "base"
