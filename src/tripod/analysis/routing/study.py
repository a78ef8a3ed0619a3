"""The study "routing": which experts of a sparse model take which tokens, and when in training that was settled.

After OpenMoE (Xue et al. 2024, arXiv:2402.01739, section 4: context-independence, early routing learning, drop towards the end) and OLMoE
(Muennighoff et al. 2024, arXiv:2409.02060, section 5: saturation, co-activation, domains). On each checkpoint the same rows are read and
every choice is kept; all figures are computed from the choices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.routing.choices import coactivation, load, num_dead, overlap, token_divergence
from tripod.analysis.routing.picture import draw_routing
from tripod.analysis.routing.recorded import recorded_routing
from tripod.analysis.routing.remarks import remarks
from tripod.analysis.routing.routed import Ids, Routed, tally
from tripod.analysis.routing.specialization import LEVEL, compare_classes, shares, spread, told_by_tokens, top_tokens
from tripod.analysis.routing.texts import LabelledRows, labelled_rows, text_files, texts_hash
from tripod.analysis.study import PLACE, Measured
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table
from tripod.training.data.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_TOP = 10  # tokens of an expert
_NUM_PLACES = 32  # of a row, in the picture of dropped tokens
RULES = ("per-token", "per-assignment")  # of capacity; see tripod.ops.moe_routing.Capacity


@dataclass(frozen=True)
class RoutingStudy:
    """Do experts specialise, in what, since when; how evenly are they used, and whom does capacity drop?"""

    name: ClassVar[str] = "routing"
    version: ClassVar[int] = 1
    texts: tuple[str, ...] = field(default=(), metadata=PLACE)  # files or folders; none: the first training rows of the run
    by: str = "domain"  # what the classes of texts are: domain, language, task; of .jsonl files the field that says it
    num_rows: int = 32  # of each class
    row_tokens: int = 256  # or as many as the model has positions
    min_tokens: int = 128  # occurrences from which on a token id or a position has routing ratios
    capacity_factor: float = 1.25
    num_permutations: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_rows, self.row_tokens, self.min_tokens) < 2 or not self.capacity_factor > 0:
            raise ConfigError(f"{self}: numbers of rows and tokens must be 2 at least, and capacity_factor above 0")
        if (1 + self.num_permutations) * LEVEL < 1:  # p is one of so many at least
            raise ConfigError(
                f"num_permutations={self.num_permutations} cannot give a p below {LEVEL}; give {round(1 / LEVEL) - 1} or more"
            )

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        if self.texts:
            return {"texts": texts_hash(text_files(self.texts))}
        return {"order": "" if checkpoint.run is None else checkpoint.run.order().content_fingerprint}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        """The choices: a row of tokens a row of the table."""
        return await asyncio.to_thread(self._measure, checkpoint)

    def _measure(self, checkpoint: Checkpoint) -> Table:
        import torch

        from tripod.models.load import load_language_model
        from tripod.training.observe_routing import observe_routing

        model = load_language_model(checkpoint.folder, device=checkpoint.device)
        rows = self._rows(checkpoint, min(self.row_tokens, model.config.max_positions))
        record = observe_routing(model, torch.from_numpy(rows.token_ids).to(checkpoint.device))
        return Routed.of_record(record, rows.classes).table()

    def _rows(self, checkpoint: Checkpoint, row_tokens: int) -> LabelledRows:
        from tripod.text.load_tokenizer import load_tokenizer

        if self.texts:
            tokenizer = load_tokenizer(checkpoint.folder)
            return labelled_rows(text_files(self.texts), self.by, tokenizer, num_rows=self.num_rows, row_tokens=row_tokens)
        if checkpoint.run is None:
            raise ConfigError(f"{checkpoint.folder} is of no run whose training rows could be read; give texts: --set texts=FOLDER")
        order = checkpoint.run.order()
        tokens = np.stack([order.rows.row(row).astype(np.int64) for row in range(min(self.num_rows, order.rows.num_rows))])
        return LabelledRows(tokens[:, : min(row_tokens, tokens.shape[1] - 1)], ("training",) * len(tokens), {})

    def conclude(self, measured: Measured) -> Table:
        """A figure a row: `measure` of a `layer`, and as far as it has them `expert`, `group`, `x`, interval, value by chance, and p."""
        series: dict[str, list[tuple[Checkpoint, Routed]]] = {}
        for checkpoint, table in measured:
            series.setdefault(checkpoint.name, []).append((checkpoint, Routed.of(table)))
        rows: list[Row] = []
        for of_model in series.values():
            of_model.sort(key=lambda one: one[0].step or 0)
            last = of_model[-1][1]
            for checkpoint, routed in of_model:
                found = [*self._of_checkpoint(routed), *self._beside_the_last(routed, last)]
                if routed is last:
                    found += self._of_the_last(checkpoint, routed)
                about = checkpoint.about()
                rows += [{**about, **row} for row in found]
            newest = of_model[-1][0]
            if newest.run is not None:
                about = {**newest.about(), "tokens": None}
                rows += [{**about, **row} for row in recorded_routing(newest.run.folder)]
        return Table.of(rows)

    def draw(self, table: Table, figure: Figure) -> None:
        draw_routing(table, figure)

    def remarks(self, table: Table) -> tuple[str, ...]:
        return remarks(table)

    def _of_checkpoint(self, routed: Routed) -> Iterator[Row]:
        """How even and how certain the choices are, and how specialised by class, token id and position."""
        generator = np.random.default_rng(self.seed)
        even = 1 / routed.num_experts
        classes = routed.class_of_document[routed.documents]
        _, token_groups = np.unique(routed.token_ids, return_inverse=True)
        width = max(1, -(-self.min_tokens // len(routed.classes)))  # positions that are taken together, so that they have enough tokens
        groups = {"token id": token_groups, "position": routed.positions // width}
        if len(routed.class_names) > 1:
            groups[self.by] = classes
        for layer, experts, weights in zip(routed.layers, routed.experts, routed.weights, strict=True):
            of_experts = load(experts, routed.num_experts)
            yield from (
                {"layer": layer, "measure": "load", "expert": expert, "value": share, "chance": even}
                for expert, share in enumerate(of_experts.tolist())
            )
            yield {"layer": layer, "measure": "dead experts", "value": float(num_dead(of_experts))}
            yield {"layer": layer, "measure": "weight of the first choice", "value": float(weights[:, 0].mean())}
            for kind, numbers in groups.items():
                found = spread(numbers, experts, routed.num_experts, generator, min_tokens=self.min_tokens)
                if found is not None:
                    row: Row = {"layer": layer, "measure": "spread", "group": kind, "x": found.num_groups, "value": found.mean}
                    yield {**row, "low": found.low, "high": found.high, "chance": found.by_chance}
        if len(routed.class_names) > 1:
            yield from self._classes(routed, generator)

    def _classes(self, routed: Routed, generator: np.random.Generator) -> Iterator[Row]:
        test = compare_classes(routed, generator, num_permutations=self.num_permutations)
        yield {"measure": "divergence", "group": self.by, "value": sum(test.divergence), "chance": sum(test.by_chance), "p": test.p_of_all}
        for at, layer in enumerate(routed.layers):
            row: Row = {"layer": layer, "measure": "divergence", "group": self.by, "value": test.divergence[at]}
            yield {**row, "low": test.low[at], "high": test.high[at], "chance": test.by_chance[at], "p": test.p[at]}
            of_frequent, by_tokens = told_by_tokens(routed, at, min_tokens=self.min_tokens)
            yield {"layer": layer, "measure": "divergence of frequent tokens", "group": self.by, "value": of_frequent, "chance": by_tokens}
        for one in test.specialists:
            row = {"layer": one.layer, "measure": "specialist", "group": one.name, "expert": one.expert}
            yield {**row, "value": one.share, "chance": one.elsewhere, "p": one.p}

    def _beside_the_last(self, routed: Routed, last: Routed) -> Iterator[Row]:
        """How much of the routing at the end is there already."""
        for layer, now, then in zip(routed.layers, routed.experts, last.experts, strict=True):
            chance = routed.top_k / routed.num_experts
            yield {"layer": layer, "measure": "overlap with the last", "value": overlap(now, then), "chance": chance}
            apart = token_divergence(routed.token_ids, now, then, routed.num_experts, min_tokens=self.min_tokens)
            yield {"layer": layer, "measure": "divergence of token ids from the last", "value": apart}

    def _of_the_last(self, checkpoint: Checkpoint, routed: Routed) -> Iterator[Row]:
        """What is looked at once: shares by class, experts that go together, tokens beyond capacity, the tokens of each expert."""
        from tripod.text.load_tokenizer import load_tokenizer

        tokenizer = load_tokenizer(checkpoint.folder)
        classes = routed.class_of_document[routed.documents]
        even = 1 / routed.num_experts
        if len(routed.class_names) > 1:
            for name, number in self._rows(checkpoint, int(routed.positions.max()) + 1).num_texts.items():
                yield {"measure": "texts of a class", "group": name, "value": float(number)}
        for layer, experts in zip(routed.layers, routed.experts, strict=True):
            of_classes = shares(tally(classes, experts, len(routed.class_names), routed.num_experts))
            for name, of_class in zip(routed.class_names, of_classes.tolist(), strict=True):
                about: Row = {"layer": layer, "measure": "share", "group": name, "chance": even}
                yield from ({**about, "expert": expert, "value": share} for expert, share in enumerate(of_class))
            together = coactivation(experts, routed.num_experts)
            for expert, other in np.argwhere(together > 0).tolist():
                yield {"layer": layer, "measure": "co-activation", "expert": expert, "x": other, "value": float(together[expert, other])}
            for expert in range(routed.num_experts):
                num_tokens = int((experts == expert).sum())
                for token, count in top_tokens(routed.token_ids, experts, expert, _NUM_TOP):
                    row: Row = {"layer": layer, "measure": "top token", "expert": expert, "group": tokenizer.token_text(token), "x": count}
                    yield {**row, "value": count / num_tokens}
            yield from self._dropped(layer, routed, experts)

    def _dropped(self, layer: int, routed: Routed, experts: Ids) -> Iterator[Row]:
        """The share of choices that would find no room, by the place in the row: each row competes with itself, under both rules."""
        import torch

        from tripod.ops.moe_routing import Capacity, within_capacity

        row_tokens = int(routed.positions.max()) + 1
        places = routed.positions * min(_NUM_PLACES, row_tokens) // row_tokens
        for rule in RULES:
            capacity = Capacity(factor=self.capacity_factor, rule=rule, group_tokens=row_tokens)  # type: ignore[arg-type]
            lost = ~within_capacity(torch.from_numpy(experts), routed.num_experts, capacity).numpy()
            for place in range(int(places.max()) + 1):
                at = places == place
                middle = float(routed.positions[at].mean())
                yield {"layer": layer, "measure": "dropped", "group": rule, "x": middle, "value": float(lost[at].mean())}
