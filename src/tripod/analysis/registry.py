"""The studies by name. A study is imported when it is asked for, so that the command line lists them at no cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, cast, get_type_hints

from tripod.analysis.study import Study
from tripod.errors import ConfigError

STUDIES: Mapping[str, tuple[str, str]] = {  # by name: module:class, and what it asks
    "learning-curves": ("tripod.analysis.learning_curves:LearningCurves", "When do models of different sizes learn what?"),
    "gender-intervention": (
        "tripod.analysis.gender_intervention:GenderIntervention",
        "What do branches answer otherwise than their controls? McNemar, bootstrap, intervals over seeds.",
    ),
    "seeds": ("tripod.analysis.seeds:Seeds", "Do runs of several seeds give the same answers? Cohen's kappa, outlier seeds."),
    "training-maps": ("tripod.analysis.training_map_study:TrainingMaps", "Do all seeds take the same way? Hidden Markov model of weights."),
    "scaling-laws": (
        "tripod.analysis.scaling_laws:ScalingLaws",
        "How does loss fall with size and data? Chinchilla's form, with intervals.",
    ),
    "memorization": (
        "tripod.analysis.memorization:Memorization",
        "Which training rows does a checkpoint know by heart, and does it matter how often and when it read them?",
    ),
    "predictable-memorization": (
        "tripod.analysis.predictable_memorization:PredictableMemorization",
        "Do smaller models and earlier checkpoints foretell which rows the largest will know by heart?",
    ),
    "term-frequency": (
        "tripod.analysis.term_frequency:TermFrequency",
        "Is arithmetic better with numbers that were read more often?",
    ),
    "model-statistics": (
        "tripod.analysis.model_statistics:ModelStatistics",
        "How do weights and activations change over training, and where does the loss spike?",
    ),
    "routing": (
        "tripod.analysis.routing.study:RoutingStudy",
        "Which experts of a sparse model take which tokens: by token id, position and domain, since when, how evenly, and what is dropped?",
    ),
}


def study_class(name: str) -> type[Study]:
    """Raises:
    ConfigError: no study has this name.
    """
    if name not in STUDIES:
        raise ConfigError(f"there is no study {name!r}; there are {', '.join(sorted(STUDIES))}")
    module, _, attribute = STUDIES[name][0].partition(":")
    return cast("type[Study]", getattr(import_module(module), attribute))


def settings_help(name: str) -> dict[str, str]:
    """The settings of a study, with their defaults as `open_study` reads them; the type of one without a default."""
    of = study_class(name)
    hints = get_type_hints(of)
    return {
        one.name: _spelled_type(hints[one.name]) if one.default is MISSING else _spelled(one.default) for one in fields(cast("Any", of))
    }


def open_study(name: str, settings: Mapping[str, str]) -> Study:
    """A study with settings given as text: numbers as numbers, several values with commas between them.

    Raises:
        ConfigError: no such study or setting, or a value that cannot be one.
    """
    of = study_class(name)
    hints = get_type_hints(of)
    known = {one.name: one for one in fields(cast("Any", of))}
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(f"the study {name} has no setting {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    values = {key: _value(key, text, hints[key]) for key, text in settings.items()}
    if absent := [key for key, one in known.items() if key not in values and one.default is MISSING and one.default_factory is MISSING]:
        raise ConfigError(f"the study {name} needs the setting {', '.join(absent)}: --set {absent[0]}=...")
    return of(**values)


def _value(key: str, text: str, kind: Any) -> Any:
    spelled = str(kind)
    if text in ("none", "None") and "None" in spelled:
        return None
    try:
        if "tuple[int" in spelled:
            return tuple(int(part) for part in text.split(","))
        if "tuple[float" in spelled:
            return tuple(float(part) for part in text.split(","))
        if "tuple[str" in spelled:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if "bool" in spelled:
            return {"true": True, "false": False}[text.lower()]
        if "int" in spelled:
            return int(text)
        if "float" in spelled:
            return float(text)
    except (ValueError, KeyError):
        raise ConfigError(f"--set {key}={text}: expected {_spelled_type(kind)}") from None
    return text


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return {None: "none", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _spelled_type(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind).replace("typing.", "")
