"""A flow as YAML and back. Functions stand in it by name, and a name is looked up in one list that the reader gives, nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tripod.errors import ConfigError, MissingExtraError
from tripod.flows.effects import Effect
from tripod.flows.flow import Flow
from tripod.flows.step import Step, as_step, branch, each, loop, step

_KINDS: Mapping[str, tuple[Any, set[str]]] = {  # the word that tells what a step is, what makes it, and what may be said beside
    "call": (step, set()),
    "each": (each, {"over", "limit"}),
    "loop": (loop, {"over", "until", "at_most"}),
    "branch": (branch, {"then", "otherwise"}),
    "flow": (step, set()),
}
_FUNCTIONS = {*_KINDS, "until", "then", "otherwise"}  # words whose value is, or names, a function


def to_yaml(flow: Flow) -> str:
    """What `from_yaml` reads.

    Raises:
        ConfigError: a function has no name of its own.
    """
    return str(_yaml().safe_dump(_flow(flow), sort_keys=False, allow_unicode=True))


def from_yaml(text: str, allow: Collection[Any]) -> Flow:
    yaml = _yaml()
    try:
        form = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the flow is no YAML that may be read: {str(error).splitlines()[0]}") from error
    return _read_flow(form, {_name(one): one for one in allow})


def _flow(flow: Flow) -> dict[str, Any]:
    form: dict[str, Any] = {"name": flow.name, "steps": {one.name: _step(one) for one in flow.steps}}
    if flow.wiring.declared is not None:
        raise ConfigError(f"flow {flow.name!r} declares the types of its inputs, which YAML cannot name; leave inputs= out")
    options = {"returns": flow.asked_returns, "max_concurrency": flow.max_concurrency}
    return form | {name: value for name, value in options.items() if value not in (None, 1)}


def _step(made: Step) -> dict[str, Any]:
    form: dict[str, Any] = {}
    for word, part in made.parts.items():
        form[word] = part if word not in _FUNCTIONS else _flow(part) if isinstance(part, Flow) else _part(part)
    if made.effect.repeatable:
        form["repeatable"] = True
    if made.takes:
        form["takes"] = {parameter: sources[0] if len(sources) == 1 else list(sources) for parameter, sources in made.takes.items()}
    return form


def _part(part: Any) -> str | dict[str, Any]:
    """A function by its name; a step that is more than one, as what it is."""
    if not isinstance(part, Step):
        return _name(part)
    return _name(part.effect) if part.kind == "call" else _step(part)


def _read_flow(form: Any, allowed: Mapping[str, Any]) -> Flow:
    _expect(form, {"name", "steps", "returns", "max_concurrency"}, "a flow")
    steps = form.get("steps")
    if not isinstance(steps, Mapping):
        raise ConfigError("a flow in YAML needs 'steps:', a name and a form for each")
    made = [_read_step(str(name), one, allowed) for name, one in steps.items()]
    name, options = str(form.get("name", "flow")), {word: form[word] for word in ("returns", "max_concurrency") if word in form}
    try:
        return Flow(*made, name=name, **options)
    except TypeError as error:
        raise ConfigError(f"flow {name!r} in YAML: {error}") from None


def _read_step(name: str | None, form: Any, allowed: Mapping[str, Any]) -> Step:
    what = f"step {name!r}" if name else "a part of a step"
    kind = next((word for word in _KINDS if isinstance(form, Mapping) and word in form), None)
    if kind is None:
        raise ConfigError(f"{what} says none of {', '.join(_KINDS)}, so nothing tells what it does")
    make, beside = _KINDS[kind]
    _expect(form, {kind, "repeatable", "takes", *beside}, what)
    words = {word: _read_part(part, allowed) if word in _FUNCTIONS else part for word, part in form.items() if word != "takes"}
    repeatable = words.pop("repeatable", None)
    try:
        return step(make(words.pop(kind), **words), name=name, repeatable=repeatable, takes=form.get("takes"))
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from None


def _read_part(part: Any, allowed: Mapping[str, Any]) -> Any:
    if isinstance(part, Mapping):
        return _read_flow(part, allowed) if "steps" in part else _read_step(None, part, allowed)
    if not isinstance(part, str) or part not in allowed:
        raise ConfigError(f"the flow names {part!r}, which is not allowed; allowed are: {', '.join(allowed) or 'none'}")
    return allowed[part]


def _expect(form: Any, words: set[str], what: str) -> None:
    if not isinstance(form, Mapping):
        raise ConfigError(f"{what} in YAML is {form!r:.100}; expected names and values")
    if unknown := [str(word) for word in form if word not in words]:
        raise ConfigError(f"{what} in YAML says {unknown[0]!r}, which means nothing; it may say {', '.join(sorted(words))}")


def _name(given: Any) -> str:
    name = given.name if isinstance(given, Flow | Effect) else as_step(given).name
    if not name.isidentifier():
        raise ConfigError(f"{name!r} has no name by which YAML could call it; write it as a function with 'def'")
    return name


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "flows", "a flow as YAML") from None
    return yaml
