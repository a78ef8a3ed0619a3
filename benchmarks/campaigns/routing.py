"""How often the study of routing finds specialists where there are none, and how often it finds the one that is planted.

    python -m benchmarks.campaigns routing [--routers 1000] [--permutations 200] [--out benchmarks/results]

Routers by rule, not by training: 48 documents of four classes, 48 tokens each, two of eight experts a token. Where nothing is planted, a
token chooses at random, or half of the tokens of a document go to an expert of that document, which has nothing to do with its class.
Where something is, a share of the tokens of one class is forced to one expert. The promises, of a test at the level of 0.05: the size, for
both kinds of router and for both questions (is the model specialised, is there a specialist), is at most 0.05 within its 95 % interval;
with a fifth of the tokens forced (115 of 576), the planted expert is found first in at least nine of ten routers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.analysis.routing.routers import routed

from benchmarks.campaigns.promises import keep_and_tell
from benchmarks.setting import setting
from tripod.analysis.routing.specialization import compare_classes
from tripod.analysis.shares import wilson

PLANTED = (0.02, 0.05, 0.1, 0.2)
TRUTH = ("code", 3)


def outcomes(num_routers: int, num_permutations: int, *, planted: float = 0.0, own_taste: float = 0.0) -> dict[str, Any]:
    """Shares of routers, with their 95 % intervals."""
    found = {"specialised": 0, "has a specialist": 0, "the planted one first": 0}
    for number in range(num_routers):
        generator = np.random.default_rng([round(1000 * planted), round(1000 * own_taste), number])
        test = compare_classes(routed(generator, planted=planted, own_taste=own_taste), generator, num_permutations=num_permutations)
        found["specialised"] += test.is_specialised
        found["has a specialist"] += bool(test.specialists)
        found["the planted one first"] += bool(test.specialists) and (test.specialists[0].name, test.specialists[0].expert) == TRUTH
    return {question: dict(zip(("share", "low", "high"), wilson(count, num_routers), strict=True)) for question, count in found.items()}


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if all that was promised holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns routing", description=__doc__)
    parser.add_argument("--routers", type=int, default=1000)
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    began_s = time.monotonic()
    size = {kind: outcomes(options.routers, options.permutations, own_taste=taste) for kind, taste in (("random", 0.0), ("tastes", 0.5))}
    power = {str(planted): outcomes(options.routers, options.permutations, planted=planted) for planted in PLANTED}
    promises = {
        "no more specialists by chance than the level says": all(
            one[question]["low"] <= 0.05 for one in size.values() for question in ("specialised", "has a specialist")
        ),
        "a fifth of a class's tokens at one expert is found": power["0.2"]["the planted one first"]["share"] >= 0.9,
    }
    results = {
        "setting": setting("benchmarks.campaigns", ("numpy",)),
        "wall_s": time.monotonic() - began_s,
        "routers": options.routers,
        "permutations": options.permutations,
        "size": size,
        "power by the share of tokens that is forced": power,
    }
    return keep_and_tell(options.out / "routing.json", results, promises)
