"""Is a series of checkpoints what it says it is? Finds what went wrong in published ones.

Pythia's: final weights served under 86 earlier revisions of the 2.8b, and as the first shard of two revisions of the 12b
(EleutherAI/pythia#205, #206), a missing revision (#94), weights initialised by another rule than stated (#135).

One pass over the files, in the order of the steps, tensor by tensor and in pieces: each is hashed, looked at for numbers that are not
finite, and its distance taken to the same tensor one and two checkpoints before. Training moves along a path, so d(i, i+2) is larger
than either part of the way, and not much smaller than their sum. Where it is, something stands in the wrong place:

    detour of i      (d(i-1, i) + d(i, i+1)) / d(i-1, i+1)     1 on a straight path, sqrt(2) on a random one, large at a stranger
    swap of i, i+1   d(i-1, i+1) + d(i, i+2) < d(i-1, i) + d(i+1, i+2)
    jump before i    log d(i-1, i) - log of the steps between, beside its neighbours' by a robust z-score; path goes on from there

Where single matrices make a detour and the others do not, a shard of another step is mixed in. Vectors (norms, biases) are too few
numbers to have a path: they swing, and in bfloat16 may rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import CheckpointError, ConfigError
from tripod.training.checkpoint_rule import CheckpointRule
from tripod.training.data.progress import Progress, no_progress
from tripod.training.initial_spread import InitialSpread, misfits
from tripod.training.safetensors_file import SafetensorsFile

_PIECE = 1 << 22  # numbers looked at once
_STEP = re.compile(r"step(0|[1-9][0-9]*)")
_DETOUR = 2.2  # of a stranger; matrices of honest runs have 1.0 to 1.6
_SWAP = 0.95  # the exchanged order must be shorter by this factor
_JUMP_Z = 3.0  # low, because in a short series the warm-up widens the spread
_JUMP = 2.5  # and by this factor; honest runs have up to 2, where a rule turns from powers to a grid
_NEIGHBOURS = 3  # on each side, that a jump is compared with
_MIN_GRID = 3  # equal gaps between steps that show the interval of a rule


class Kind(StrEnum):
    """What is wrong."""

    UNREADABLE = "unreadable"  # a file is absent, truncated or not of its format
    CORRUPT = "corrupt"  # a tensor is not what its manifest says
    NOT_FINITE = "not finite"  # NaN or infinity in a tensor, or a negative second moment
    MISMATCH = "mismatch"  # other tensors or shapes than at the step before
    MISLABELLED = "mislabelled"  # the manifest is of another step
    MISSING = "missing"  # a step that the rule keeps is absent
    DUPLICATE = "duplicate"  # the same weights under two steps
    FOREIGN_TENSORS = "foreign tensors"  # some tensors are of another step
    SWAPPED = "swapped"  # two steps in each other's place
    STRANGER = "stranger"  # the whole checkpoint is off the path of its neighbours
    JUMP = "jump"  # the path is broken and goes on elsewhere
    INITIALIZATION = "initialization"  # step 0 is not drawn as declared


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with a series."""

    kind: Kind
    steps: tuple[int, ...]
    tensors: tuple[str, ...] = ()  # none: all of them
    detail: str

    def __str__(self) -> str:
        where = "step " + (", ".join(map(str, self.steps)) if len(self.steps) <= 4 else f"{self.steps[0]} to {self.steps[-1]}")
        named = (
            f" [{', '.join(self.tensors[:3])}{f' and {len(self.tensors) - 3} more' if len(self.tensors) > 3 else ''}]"
            if self.tensors
            else ""
        )
        return f"{where}: {self.kind}{named}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What was looked at and what was found. A series is sound when nothing was found."""

    steps: tuple[int, ...]
    num_tensors: int  # of weights, at the last step
    num_hashes_checked: int  # tensors compared with a manifest; 0 where there is none
    expected_steps: tuple[int, ...]  # those that the rule keeps; see `audit`
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        return not self.findings


def audit(
    series: Path | Sequence[Path],
    *,
    expected_steps: Sequence[int] | None = None,
    initial_spread: InitialSpread | None = None,
    progress: Progress = no_progress,
) -> AuditReport:
    """Audit a run, or checkpoints wherever they lie.

    Args:
        series: a run that holds `stepN`, or the folders, each named `stepN`.
        expected_steps: that the rule keeps. None: the manifest's rule where there is one, else the powers of two and the grid that
            most of the steps lie on, between the first and the last.
        initial_spread: the rule by which step 0 was drawn. None: the manifest's where there is one, else any known rule will do.
        progress: told the stage "audit", with checkpoints done.

    Raises:
        ConfigError: there are no checkpoints, or two of one step.
    """
    folders = _folders(series)
    walk = _Walk()
    for done, (step, folder) in enumerate(folders.items()):
        progress("audit", done, len(folders))
        walk.visit(step, folder)
    progress("audit", len(folders), len(folders))
    recipe = walk.recipe
    declared = initial_spread or _declared_spread(recipe)
    expected = tuple(expected_steps) if expected_steps is not None else _declared_steps(recipe) or inferred_steps(tuple(folders))
    findings = [*walk.findings, *_missing(expected, folders), *walk.repeated(), *walk.off_the_path()]
    if 0 in folders and walk.spreads and (initial_spread or _is_drawn_by_a_rule(recipe)):
        findings += [
            Finding(kind=Kind.INITIALIZATION, steps=(0,), tensors=tuple(names), detail=detail)
            for names, detail in misfits(walk.spreads, walk.config, declared)
        ]
    order = {kind: place for place, kind in enumerate(Kind)}
    return AuditReport(
        steps=tuple(folders),
        num_tensors=len(walk.names),
        num_hashes_checked=walk.num_hashes_checked,
        expected_steps=expected,
        findings=tuple(sorted(findings, key=lambda finding: (order[finding.kind], finding.steps))),
    )


def inferred_steps(steps: Sequence[int]) -> tuple[int, ...]:
    """The steps of the rule that a series seems to follow: powers of two, and a grid where three gaps are alike.

    0, 1, 2, 8, 16, 24, 32, 40, 56 has holes at 4, between the powers, and at 48, on the grid of 8.
    """
    present = sorted(set(steps))
    gaps = Counter(later - earlier for earlier, later in pairwise(present))
    interval = min((gap for gap, count in gaps.items() if count >= _MIN_GRID), key=lambda gap: (-gaps[gap], gap), default=0)
    on_grid = [step for step in present if interval and step > 0 and step % interval == 0]
    first = next((step for step in on_grid if step & (step - 1)), None)  # a power of two may be kept for being one
    grid = range(first, on_grid[-1] + 1, interval) if first is not None else range(0)
    powers = [step for step in present if step > 0 and step & (step - 1) == 0 and (first is None or step < first)]
    between = {1 << exponent for exponent in range(powers[0].bit_length() - 1, powers[-1].bit_length())} if powers else set()
    return tuple(sorted({*present, *grid, *between}))


class _Walk:
    """Along the series, with two checkpoints behind."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.recipe: Mapping[str, Any] = {}
        self.config: Mapping[str, Any] = {}
        self.spreads: dict[str, tuple[float, float, int]] = {}  # of step 0: mean, standard deviation, numbers
        self.names: set[str] = set()
        self._matrices: set[str] = set()
        self.num_hashes_checked = 0
        self._behind: list[tuple[int, dict[str, SafetensorsFile]]] = []  # at most two: step, weights by tensor
        self._steps: list[int] = []  # whose weights could be read
        self._hashes: dict[int, dict[str, str]] = {}
        self._near: dict[str, dict[int, float]] = defaultdict(dict)  # tensor -> step -> squared distance to the step before
        self._far: dict[str, dict[int, float]] = defaultdict(dict)  # to the one before that

    def visit(self, step: int, folder: Path) -> None:
        manifest = self._manifest(step, folder)
        weights = self._open(step, folder, manifest)
        if weights:
            self._visit_weights(step, folder, weights, manifest)
        if (folder / "optimizer.safetensors").is_file():
            self._visit_optimizer(step, folder / "optimizer.safetensors", manifest)

    def _visit_weights(
        self, step: int, folder: Path, weights: dict[str, SafetensorsFile], manifest: Mapping[str, Mapping[str, str]]
    ) -> None:
        if step == 0:
            self._read_config(step, folder)
        shapes = {name: file.tensors[name].shape for name, file in weights.items()}
        if self._behind:
            before = {name: file.tensors[name].shape for name, file in self._behind[-1][1].items()}
            if differing := sorted(name for name in shapes.keys() | before.keys() if shapes.get(name) != before.get(name)):
                detail = f"other tensors or shapes than step {self._behind[-1][0]}"
                self.findings.append(Finding(kind=Kind.MISMATCH, steps=(step,), tensors=tuple(differing), detail=detail))
        self.names = set(weights)
        self._matrices |= {name for name, shape in shapes.items() if len(shape) > 1}
        self._hashes[step] = {}
        corrupt = []
        bad: list[str] = []
        for name, file in sorted(weights.items()):
            declared = manifest.get(file.path.name, {}).get(name)
            digest = self._look(file, name, step, bad)
            self._hashes[step][name] = digest
            self.num_hashes_checked += declared is not None
            if declared is not None and declared != digest:
                corrupt.append(name)
        self._report_tensors(step, corrupt, bad)
        self._steps.append(step)
        self._behind = [*self._behind[-1:], (step, weights)]

    def _visit_optimizer(self, step: int, path: Path, manifest: Mapping[str, Mapping[str, str]]) -> None:
        try:
            file = SafetensorsFile.open(path)
        except CheckpointError as error:
            self.findings.append(Finding(kind=Kind.UNREADABLE, steps=(step,), detail=str(error)))
            return
        declared = manifest.get(path.name, {})
        corrupt = []
        bad = []
        for name in file.tensors:
            self.num_hashes_checked += name in declared
            if name in declared and hashlib.sha256(file.raw(name).data).hexdigest() != declared[name]:
                corrupt.append(name)
            for start in range(0, math.prod(file.tensors[name].shape), _PIECE):
                values = file.floats(name, slice(start, start + _PIECE))
                if values is not None and (not np.isfinite(values).all() or (name.startswith("exp_avg_sq") and (values < 0).any())):
                    bad.append(name)
                    break
        self._report_tensors(step, corrupt, bad)

    def _report_tensors(self, step: int, corrupt: Sequence[str], bad: Sequence[str]) -> None:
        if corrupt:
            detail = "not the tensors whose hashes are in manifest.json"
            self.findings.append(Finding(kind=Kind.CORRUPT, steps=(step,), tensors=tuple(corrupt), detail=detail))
        if bad:
            detail = "NaN or infinity, or a second moment below zero"
            self.findings.append(Finding(kind=Kind.NOT_FINITE, steps=(step,), tensors=tuple(bad), detail=detail))

    def _look(self, file: SafetensorsFile, name: str, step: int, bad: list[str]) -> str:
        """Hash one tensor, and take its distances."""
        digest = hashlib.sha256()
        layout = file.tensors[name]
        behind = [
            (files[name], distances)
            for (_, files), distances in zip(reversed(self._behind), (self._near, self._far), strict=False)
            if name in files
        ]
        behind = [(other, distances) for other, distances in behind if other.tensors[name].shape == layout.shape]
        squares = [0.0] * len(behind)
        total = total_square = 0.0
        is_finite = True
        count = math.prod(layout.shape)
        item_bytes = (layout.stop - layout.start) // max(count, 1)
        for start in range(0, count, _PIECE):
            part = slice(start, start + _PIECE)
            digest.update(file.raw(name)[start * item_bytes : (start + _PIECE) * item_bytes].data)
            values = _double(file, name, part)
            if values is None:
                continue
            if not np.isfinite(values).all():
                is_finite = False
                continue
            total += float(values.sum())
            total_square += float(values @ values)
            for place, (other, _) in enumerate(behind):
                earlier = _double(other, name, part)
                if earlier is None:
                    squares[place] = math.nan
                    continue
                earlier -= values
                squares[place] += float(earlier @ earlier)  # not finite where the earlier one is not
        if not is_finite:
            bad.append(name)
        elif _is_float(file, name):
            for square, (_, distances) in zip(squares, behind, strict=True):
                if math.isfinite(square):
                    distances[name][step] = square
            if step == 0 and count:
                self.spreads[name] = (total / count, math.sqrt(max(0.0, total_square / count - (total / count) ** 2)), count)
        return digest.hexdigest()

    def _open(self, step: int, folder: Path, manifest: Mapping[str, Mapping[str, str]]) -> dict[str, SafetensorsFile]:
        """The weights by tensor, of one file or of shards."""
        paths = sorted(folder.glob("model*.safetensors"))
        tensors: dict[str, SafetensorsFile] = {}
        try:
            if not paths:
                raise CheckpointError(f"{folder} has no model*.safetensors")
            for path in paths:
                file = SafetensorsFile.open(path)
                tensors |= dict.fromkeys(file.tensors, file)
            index = folder / "model.safetensors.index.json"
            if index.is_file() and (absent := sorted(json.loads(index.read_text())["weight_map"].keys() - tensors.keys())):
                raise CheckpointError(f"{index} names tensors that no file holds: {', '.join(absent[:4])}")
        except (CheckpointError, OSError, ValueError, KeyError) as error:
            self.findings.append(Finding(kind=Kind.UNREADABLE, steps=(step,), detail=str(error)))
        return tensors

    def _manifest(self, step: int, folder: Path) -> Mapping[str, Mapping[str, str]]:
        """The hashes of the tensors by file; nothing where there is no manifest, which series of others do not have."""
        path = folder / "manifest.json"
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            labelled = content.get("position", {}).get("step", step)
            tensors: Mapping[str, Mapping[str, str]] = content.get("tensors", {})
            self.recipe = content.get("recipe", {})
        except (OSError, ValueError, AttributeError) as error:
            self.findings.append(Finding(kind=Kind.UNREADABLE, steps=(step,), detail=f"{path} cannot be read: {error}"))
            return {}
        if labelled != step:
            detail = f"its manifest is of step {labelled}"
            self.findings.append(Finding(kind=Kind.MISLABELLED, steps=(step,), detail=detail))
        return tensors

    def _read_config(self, step: int, folder: Path) -> None:
        try:
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.findings.append(Finding(kind=Kind.UNREADABLE, steps=(step,), detail=f"{folder / 'config.json'} cannot be read: {error}"))

    def repeated(self) -> list[Finding]:
        """Weights that occur at two steps, all or some. Matrices that rest more often than they move, as masks do, do not count."""
        moves: Counter[str] = Counter()
        for earlier, later in pairwise(self._steps):
            for name in self._matrices & self._hashes[earlier].keys() & self._hashes[later].keys():
                moves[name] += 1 if self._hashes[earlier][name] != self._hashes[later][name] else -1
        owners: dict[tuple[str, str], list[int]] = defaultdict(list)
        for step in self._steps:
            for name in self._hashes[step].keys() & {name for name, count in moves.items() if count > 0}:
                owners[name, self._hashes[step][name]].append(step)
        found = []
        for earlier, later in sorted({pair for steps in owners.values() for pair in pairwise(steps)}):
            one, other = self._hashes[earlier], self._hashes[later]
            same = sorted(name for name in one.keys() & other.keys() if one[name] == other[name])
            if len(same) == len(one.keys() | other.keys()):
                found.append(Finding(kind=Kind.DUPLICATE, steps=(earlier, later), detail="the same weights under both steps"))
            else:
                detail = f"{len(same)} of {len(one)} tensors are the same at both steps, the others are not"
                found.append(Finding(kind=Kind.FOREIGN_TENSORS, steps=(earlier, later), tensors=tuple(same), detail=detail))
        return found

    def off_the_path(self) -> list[Finding]:
        """Swaps, strangers, jumps and tensors of another step, by distances."""
        complete = [
            name for name in self._near if len(self._near[name]) == len(self._steps) - 1 and len(self._far[name]) == len(self._steps) - 2
        ]
        whole_near, whole_far = (
            {step: math.sqrt(sum(distances[name][step] for name in complete)) for step in steps}
            for distances, steps in ((self._near, self._steps[1:]), (self._far, self._steps[2:]))
        )
        found, explained = self._of_path(whole_near, whole_far, None, ())
        single: dict[tuple[Kind, tuple[int, ...]], list[str]] = defaultdict(list)
        for name in sorted(self._matrices & self._near.keys()):
            near, far = ({step: math.sqrt(square) for step, square in distances[name].items()} for distances in (self._near, self._far))
            for finding in self._of_path(near, far, whole_near, (name,))[0]:
                single[finding.kind, finding.steps].append(name)
        for (_, steps), names in sorted(single.items(), key=lambda item: item[0][1]):
            if not explained & set(steps):
                detail = "off the path that they take at the steps around it, while other tensors are on theirs"
                found.append(Finding(kind=Kind.FOREIGN_TENSORS, steps=steps, tensors=tuple(names), detail=detail))
        return found

    def _of_path(
        self, near: Mapping[int, float], far: Mapping[int, float], whole_near: Mapping[int, float] | None, names: tuple[str, ...]
    ) -> tuple[list[Finding], set[int]]:
        """Of one path: what is found, and the steps whose distances it explains."""
        steps = self._steps
        found: list[Finding] = []
        explained: set[int] = set()
        for a, b, c, d in zip(steps, steps[1:], steps[2:], steps[3:], strict=False):
            if not {b, c, d} <= near.keys() or not {c, d} <= far.keys():
                continue
            if far[c] + far[d] < _SWAP * (near[b] + near[d]) and far[c] < near[b] and far[d] < near[d]:
                detail = f"from step {a} to {d} the way is shorter with these two exchanged"
                found.append(Finding(kind=Kind.SWAPPED, steps=(b, c), tensors=names, detail=detail))
                explained |= {b, c, d}
        for a, b, c in zip(steps, steps[1:], steps[2:], strict=False):
            if b in explained or not {b, c} <= near.keys() or c not in far:
                continue
            way = near[b] + near[c]
            if way > _DETOUR * far[c] and way > 0:
                detail = f"{way / max(far[c], 1e-300):.1f} times as far from step {a} to {c} by way of it as without"
                found.append(Finding(kind=Kind.STRANGER, steps=(b,), tensors=names, detail=detail))
                explained |= {b, c}
        for step, z, factor in _jumps(steps, near, whole_near, explained):
            detail = f"{factor:.1f} times as far from the step before as its neighbours from theirs (robust z-score {z:.1f})"
            found.append(Finding(kind=Kind.JUMP, steps=(step,), tensors=names, detail=detail))
            explained.add(step)
        return found, explained


def _jumps(
    steps: Sequence[int], near: Mapping[int, float], whole_near: Mapping[int, float] | None, explained: set[int]
) -> list[tuple[int, float, float]]:
    """Steps whose distance to the one before stands out: step, robust z-score, and how many times the neighbours' distance it is.

    The distance d of all weights is compared as log d - log(gap) / 2: on a random path d grows by the root of the number of updates,
    on a straight one by the number itself, and neighbours on both sides cancel what the root misses. The distance of one tensor is
    compared as its share of that of all, which is free of gap and learning rate.
    """
    usable = []
    for before, step in pairwise(steps):
        expected = math.sqrt(step - before) if whole_near is None else whole_near.get(step, 0.0)
        if near.get(step, 0.0) > 0 and expected > 0 and step not in explained:
            usable.append((step, math.log(near[step] / expected)))
    if len(usable) < 2 * _NEIGHBOURS:
        return []
    rates = np.array([rate for _, rate in usable])
    residuals = np.empty_like(rates)
    for place, rate in enumerate(rates):
        around = [*rates[max(0, place - _NEIGHBOURS) : place], *rates[place + 1 : place + 1 + _NEIGHBOURS]]
        residuals[place] = rate - np.median(around)
    spread = max(1.4826 * float(np.median(np.abs(residuals - np.median(residuals)))), 1e-3)
    scores = (residuals - np.median(residuals)) / spread
    return [
        (step, float(score), math.exp(residual))
        for (step, _), score, residual in zip(usable, scores, residuals, strict=True)
        if score > _JUMP_Z and residual > math.log(_JUMP)
    ]


def _missing(expected: Sequence[int], folders: Mapping[int, Path]) -> list[Finding]:
    """A finding for each hole, and one for all that would come behind the last, as in a run that is not finished."""
    last = max(folders)
    detail = "the rule keeps this step, and there is no folder of it"
    found = [Finding(kind=Kind.MISSING, steps=(step,), detail=detail) for step in expected if step < last and step not in folders]
    if behind := tuple(step for step in expected if step > last):
        detail = f"the rule keeps {len(behind)} more behind step {last}: the run is not finished, or they were lost"
        found.append(Finding(kind=Kind.MISSING, steps=behind, detail=detail))
    return found


def _declared_steps(recipe: Mapping[str, Any]) -> tuple[int, ...]:
    """By the checkpoint rule of a recipe, for a branch from the step that it left its parent at; nothing where there is no rule."""
    rule, num_steps, branch = recipe.get("checkpoints"), recipe.get("num_steps"), recipe.get("branch")
    if not isinstance(rule, Mapping) or not isinstance(num_steps, int):
        return ()
    parent = str(branch.get("parent", "")) if isinstance(branch, Mapping) else ""
    first = int(match[1]) if (match := _STEP.fullmatch(parent.rpartition("@")[2])) else 0
    known = {field.name for field in fields(CheckpointRule)}
    declared = CheckpointRule(**{name: value for name, value in rule.items() if name in known})
    return tuple(step for step in declared.steps(num_steps) if step >= first)


def _is_drawn_by_a_rule(recipe: Mapping[str, Any]) -> bool:
    """Whether step 0 can be held against `InitialSpread`: not where it was a dense model, nor drawn by the inputs of each matrix."""
    model = recipe.get("model")
    return not isinstance(model, Mapping) or (model.get("upcycled_from") is None and model.get("initialization") != "fan-in")


def _declared_spread(recipe: Mapping[str, Any]) -> InitialSpread | None:
    model = recipe.get("model")
    name = model.get("initialization") if isinstance(model, Mapping) else None
    return InitialSpread(name) if name in list(InitialSpread) else None


def _folders(series: Path | Sequence[Path]) -> dict[int, Path]:
    if isinstance(series, Path):
        paths = [entry for entry in series.iterdir() if entry.is_dir() and _STEP.fullmatch(entry.name)] if series.is_dir() else []
        if not paths:
            raise ConfigError(f"{series} has no checkpoints; expected folders step0, step1, ...")
    else:
        paths = list(series)
    folders: dict[int, Path] = {}
    for path in paths:
        match = _STEP.fullmatch(path.name)
        if match is None:
            raise ConfigError(f"{path} is not named stepN, so its step is not known")
        if int(match[1]) in folders:
            raise ConfigError(f"step {match[1]} is given twice: {folders[int(match[1])]} and {path}")
        folders[int(match[1])] = path
    if not folders:
        raise ConfigError("no checkpoints are given")
    return dict(sorted(folders.items()))


def _double(file: SafetensorsFile, name: str, part: slice) -> NDArray[np.float64] | None:
    values = file.floats(name, part)
    return None if values is None else values.astype(np.float64)


def _is_float(file: SafetensorsFile, name: str) -> bool:
    return file.floats(name, slice(0, 0)) is not None
