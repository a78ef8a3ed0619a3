"""The replication cards: what Pythia, PolyPythias and OLMoE published, and how it is computed from the files that they released."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tripod.analysis.published_plots import (
    arithmetic_table,
    curves_table,
    draw_arithmetic,
    draw_maps,
    draw_published_curves,
    draw_published_scaling,
    draw_stereotypes,
    maps_table,
    scaling_points,
    stereotypes_table,
)
from tripod.analysis.replication import Card, Computed, Findings, Part, Plot, Values
from tripod.analysis.routing.published import draw_domains, findings, picture_table
from tripod.analysis.term_frequency_file import read_term_frequency
from tripod.analysis.training_maps import outlier_seeds, read_training_maps
from tripod.errors import ConfigError
from tripod.evaluation.results import read_results
from tripod.evaluation.table import Row, Table

# --- zero-shot


def _v1(data: Path) -> Table:
    return read_results([data / "pythia-evals" / "v1.jsonl.gz"])


def _zero_shot(data: Path) -> Values:
    table = _v1(data).where(shots=0, step=143000, run="base", variant="")
    return {(str(row["model"]), f"{row['task']} {row['metric']}"): _value(row) for row in table}


def _value(row: Row) -> float:
    value = row["value"]
    assert isinstance(value, float)
    return value


# --- the gender intervention

_GENDER = {"task": "crows_pairs_english_gender", "metric": "pct_stereotype"}
_OLD_NAMES = {"410m": "v0 410m (350m)", "1.4b": "v0 1.4b (1.3b)", "6.9b": "v0 6.9b", "70m": "v0 70m (19m)"}


def _crows_pairs(data: Path) -> Values:
    values: dict[tuple[str, str], Computed] = {}
    first = read_results([data / "pythia-evals" / "bias.jsonl.gz"]).where(**_GENDER)
    for (size, run), series in first.sorted_by("step").by("size", "run").items():
        ended = series.numbers("value")
        values[_OLD_NAMES[str(size)], f"{run} mean of the last five"] = sum(ended[-5:]) / 5
        values[_OLD_NAMES[str(size)], f"{run} final"] = ended[-1]
    for row in _intervention(_v1(data)).where(**_GENDER):
        values[f"v1 {row['size']}", f"{row['run']} final"] = _value(row)
    return values


def _intervention(table: Table) -> Table:
    """The last checkpoints of the intervention and of its baseline, which was evaluated beside it."""
    return table.where(lambda row: row["run"] != "base" or row["variant"] == "baseline", step=143000)


def _lambada(data: Path) -> Values:
    table = _intervention(_v1(data)).where(task="lambada_openai", metric="ppl")
    return {(f"v1 {row['size']}", str(row["run"])): _value(row) for row in table}


def _winobias(data: Path) -> Values:
    """Over templates and types: mean exact match of pro-stereotypical sentences less that of the others; and of all."""
    values: dict[tuple[str, str], Computed] = {}
    table = read_results([data / "pythia-evals" / "bias.jsonl.gz"]).where(metric="em", step=143000)
    for (size, run), series in table.by("size", "run").items():
        pro, anti = (series.where(lambda row, end=end: str(row["task"]).endswith(end)).numbers("value") for end in ("_pro", "_anti"))  # type: ignore[misc]
        values[f"v1 {size}", f"{run} pro - anti"] = sum(pro) / len(pro) - sum(anti) / len(anti)
        values[f"v1 {size}", f"{run} accuracy"] = sum(pro + anti) / len(pro + anti)
    return values


# --- term frequency


def _term_frequency(data: Path) -> Values:
    groups = read_term_frequency(data).where(shots=16).by("model", "operation", "step")
    return {
        (str(model), f"{operation} at {step}"): sum(group.numbers("value")) / len(group)
        for (model, operation, step), group in groups.items()
    }


# --- PolyPythias


def _maps(data: Path) -> Values:
    maps = read_training_maps(data / "pythia-evals" / "polypythias" / "training_maps.tsv")
    states = Counter(maps.column("state"))
    seeds = outlier_seeds(maps)
    return {
        ("all seeds", "rows"): str(len(maps)),
        ("all seeds", "seeds"): str(len(set(maps.column("seed")))),
        ("all seeds", "steps"): str(len(set(maps.column("step")))),
        ("outlier seeds", "seeds"): " and ".join(map(str, seeds)),
        **{(f"state {state}", "rows"): str(count) for state, count in states.items()},
    }


CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        Card(
            "pythia-zero-shot",
            "Pythia: zero-shot results at step 143000",
            "Pythia (Biderman et al. 2023, arXiv:2304.01373), second release, from the result files that its repository publishes "
            "(`evals/pythia-v1/*/zero-shot`). The standard 1b is the model that the files call 1b-bf16.",
            (Part("Accuracy, and perplexity on LAMBADA", "pythia-zero-shot.csv", _zero_shot),),
            Plot(
                "Accuracy over training, with one standard error; dotted: chance. Parameters without embeddings.",
                curves_table,
                draw_published_curves,
            ),
            ("That the models give these numbers: their weights are not at hand here. `tripod eval tasks` scores them where they are.",),
        ),
        Card(
            "gender-intervention",
            "Pythia: swapping pronouns at the end of training",
            "The gender case study of Pythia (arXiv:2304.01373, section 3.1), from `evals/bias-evals` and `evals/pythia-v1/*/{baseline,"
            "intervention}`. The intervention covers the last 7 % of training, the long one the last 21 %.",
            (
                Part("CrowS-Pairs, gender: share of pairs whose stereotyping sentence is more likely", "crows-pairs.csv", _crows_pairs),
                Part(
                    "WinoBias by generation, at step 143000",
                    "winobias.csv",
                    _winobias,
                    "the files of the first release (`evals/pythia-v0/winobias`) are not among those at hand.",
                ),
                Part("LAMBADA perplexity at step 143000", "intervention-lambada.csv", _lambada),
            ),
            Plot("CrowS-Pairs, gender, along the interventions; bands: one standard error.", stereotypes_table, draw_stereotypes),
            (
                "That the intervention reduces stereotypes: there is one run of each kind, and no seeds to compare it with. `tripod study "
                "gender-intervention` gives paired tests of branches and controls of one's own.",
                "The multiple-choice scoring of WinoBias in the paper's figure: neither its prompts nor its results were published. "
                "Ours is the task `winobias` of `tripod eval tasks`.",
            ),
        ),
        Card(
            "term-frequency",
            "Pythia: arithmetic by checkpoint, sixteen shots",
            "The term-frequency case study of Pythia (arXiv:2304.01373, section 3.3), from `evals/csv/*/term_frquency_all_shots.csv`: mean "
            "accuracy over the hundred first operands.",
            (Part("Mean accuracy over first operands", "term-frequency.csv", _term_frequency),),
            Plot("Arithmetic over training, by size (parameters without embeddings).", arithmetic_table, draw_arithmetic),
            (
                "The performance gap between frequent and rare operands, and the curves over frequency: the counts of terms in the "
                "training data were not published.",
            ),
        ),
        Card(
            "polypythias-maps",
            "PolyPythias: training maps of the 410m models",
            "PolyPythias (van der Wal et al. 2025, arXiv:2503.09543), from `polypythias/data/training_maps.tsv`. Outlier seeds are found "
            "by us from the states alone: those whose path agrees least with the other seeds' (`tripod.analysis.training_maps`); the "
            "file's own grouping is not read for it.",
            (Part("States of the hidden Markov model", "polypythias-maps.csv", _maps),),
            Plot("The way of each seed through the states, as published; outliers as we find them.", maps_table, draw_maps),
            (
                "The fit of the hidden Markov model itself: the weight statistics of the checkpoints that it was fitted to are not "
                "published. `tripod study training-maps` fits one to runs of one's own.",
            ),
        ),
        Card(
            "pythia-scaling-law",
            "Pythia: a scaling law through the published points",
            "Nobody printed this law: it is the form of Chinchilla (Hoffmann et al. 2022, arXiv:2203.15556) fitted to the loss on "
            "LAMBADA's last words, the logarithm of the published perplexities, of the eight sizes from step 13000 on. There is one data "
            "set and one schedule, so a point before the end is of a higher learning rate than a run that ends there.",
            (),
            Plot("Loss by tokens and size, the law, and what it leaves over.", scaling_points, draw_published_scaling),
        ),
        Card(
            "routing",
            "OLMoE and Mixtral: experts by domain",
            "The domain specialisation of OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): how often each expert was chosen in three "
            "layers, over 208,896 tokens of each of five domains, from `scripts/routing_output/*/expert_counts`. The paper shows this as a "
            "picture without numbers; it finds OLMoE's experts specialised by domain, and Mixtral's hardly. So it comes out here.",
            (),
            Plot(
                "Each expert's share of each domain's tokens, against an even share; and how far the shares of the domains lie apart.",
                picture_table,
                draw_domains,
            ),
            (
                "How far other texts of these domains would lie from these: the counts do not say which document a token is of. "
                "`tripod study routing` keeps documents apart, and tests by permuting them.",
            ),
            Findings(
                "How specialised",
                findings,
                "Doublings: the mean over experts and domains of |log2(share of the domain / mean share of the domains)|, so 1 means that "
                "an expert is typically chosen twice or half as often in a domain as over all; in brackets a 95 % bootstrap interval over "
                "experts. By chance: the same of a router that sends the tokens of all domains alike (one draw). Bits: the Jensen-Shannon "
                "divergence of the five domains, at most 2.32. Largest share: of the tokens of one domain, those for which one expert is "
                "among the chosen.",
            ),
        ),
    )
}


def cards_named(name: str) -> tuple[Card, ...]:
    """Raises:
    ConfigError: no card has this name.
    """
    if name == "all":
        return tuple(CARDS.values())
    if name not in CARDS:
        raise ConfigError(f"there is no card {name!r}; there are {', '.join(CARDS)}, or all")
    return (CARDS[name],)
