"""Recipes as YAML or Python: read with types, with presets under them and `key=value` changes over them; and written back."""

from __future__ import annotations

import runpy
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tripod.errors import ConfigError, MissingExtraError
from tripod.training.model_recipe import Problem
from tripod.training.neox_config import is_neox_config, neox_recipe
from tripod.training.presets import PRESETS
from tripod.training.recipe import Checked, Recipe, raise_problems

_ABSENT = object()


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML, from a Python file that says `recipe = Recipe(...)`, or from a configuration file of GPT-NeoX.

    A `preset: NAME` at the top stands for that preset's whole content, in `model` for its model alone; what the file says itself goes
    before it.

    Args:
        path: of the file.
        overrides: "a.b=value", which go before the file. A name without a dot may stand for the only field of that name: "lr=3e-4".

    Raises:
        ConfigError: the file cannot be read, or naming every unknown key and every wrong value, by its path.
        MissingExtraError: PyYAML is not installed.
    """
    content = read_content(path)
    content.pop("suite", None)  # what a suite varies about this recipe; see `tripod.training.suite`
    if is_neox_config(content):
        problems: list[Problem] = []
        given = [named for override in overrides if (named := _full_path(override.partition("=")[0], problems))]
        content = neox_recipe(content, name=path.stem, source=str(path), given=given)
    return recipe_from(content, overrides, source=str(path))


def read_content(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, not looked at; a file whose name ends with .py is run, and its `recipe` taken.

    Raises:
        ConfigError: the file cannot be read, fails, or holds something else.
        MissingExtraError: PyYAML is not installed.
    """
    if path.suffix == ".py":
        return _run_recipe(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}; give the path of a YAML file") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} holds {type(content).__name__}, expected keys and values")
    return content


def _run_recipe(path: Path) -> dict[str, Any]:
    """What a Python file calls `recipe`, and `suite` if there is one: a Recipe, or keys and values as in YAML."""
    try:
        names = runpy.run_path(str(path))
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}; give the path of a YAML or Python file") from error
    except Exception as error:
        line = next((frame.lineno for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.filename == str(path)), None)
        where = "" if line is None else f" in line {line}"
        raise ConfigError(f"the recipe {path} fails{where}: {type(error).__name__}: {error}") from error
    recipe = names.get("recipe")
    if isinstance(recipe, Recipe):
        content = to_mapping(recipe)
    elif isinstance(recipe, Mapping):
        content = dict(recipe)
    else:
        given = "nothing" if "recipe" not in names else type(recipe).__name__
        raise ConfigError(f"the recipe {path} calls {given} `recipe`; expected recipe = Recipe(...), or a dictionary of its fields")
    return content | ({"suite": names["suite"]} if "suite" in names else {})


def recipe_from(content: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "the recipe") -> Recipe:
    """Build a recipe from nested mappings, as YAML and JSON have them; see `read_recipe`."""
    problems: list[Problem] = []
    merged = _copy(content)
    for override in overrides:
        _override(merged, override, problems)
    merged = _with_presets(merged, problems)
    recipe = _build(Recipe, merged, "", problems)
    raise_problems(problems, source)
    assert isinstance(recipe, Recipe)
    return recipe


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Plain values for YAML or JSON; `recipe_from` of it gives this recipe again."""
    plain = _plain(asdict(recipe))
    assert isinstance(plain, dict)
    return plain


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, presets written out."""
    return _yaml().safe_dump(to_mapping(recipe), sort_keys=False)  # type: ignore[no-any-return]


def _yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyyaml", "training", "reading a recipe") from error
    return yaml


def parse_yaml(text: str, source: str) -> Any:
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}{_missing_comma(text, error)}") from error


def _missing_comma(text: str, error: Any) -> str:
    """Where a comma is missing between lines in braces, the parser points behind it, at the next line; so we name the line before."""
    mark = getattr(error, "problem_mark", None)
    if mark is None or "expected ','" not in str(error.problem):
        return ""
    for number in range(mark.line - 1, -1, -1):
        line = text.splitlines()[number].partition("#")[0].strip()
        if line:
            return f"\n  line {number + 1} has no comma at its end: {line}\n  put one there"
    return ""


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def merge_content(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other: where both say something, `over` goes before."""
    merged = _copy(under)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge_content(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged  # type: ignore[no-any-return]


def _with_presets(content: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    if (name := content.pop("preset", None)) is not None:
        content = merge_content(_preset(name, "preset", problems), content)
    model = content.get("model")
    if isinstance(model, dict) and (name := model.pop("preset", None)) is not None:
        content["model"] = merge_content(_preset(name, "model.preset", problems).get("model", {}), model)
    return content


def _preset(name: object, path: str, problems: list[Problem]) -> Mapping[str, Any]:
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    problems.append((path, f"{name!r} is not a preset; presets: {', '.join(PRESETS)}"))
    return {}


def _override(content: dict[str, Any], override: str, problems: list[Problem]) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        problems.append((override, "a change is written as path=value, such as optimizer.lr=3e-4"))
        return
    path = _full_path(path, problems)
    if not path:
        return
    *parents, last = path.split(".")
    inner = content
    for parent in parents:
        inner = inner.setdefault(parent, {}) if inner.get(parent, {}) is not None else _replaced_none(inner, parent)
        if not isinstance(inner, dict):
            problems.append((path, f"{parent} is a value and has nothing inside"))
            return
    inner[last] = parse_yaml(text, override)


def _full_path(path: str, problems: list[Problem]) -> str:
    """A name without a dot may stand for the only field of that name; empty, with a problem, if it stands for several."""
    leaves = _paths(Recipe, "")
    if "." in path or path in {*leaves, "preset"}:
        return path
    found = [leaf for leaf in leaves if leaf.rpartition(".")[2] == path]
    if len(found) > 1:
        problems.append((path, f"stands for several: {', '.join(found)}; write one of them"))
        return ""
    return found[0] if found else path


def _replaced_none(content: dict[str, Any], key: str) -> dict[str, Any]:
    content[key] = {}
    return content[key]  # type: ignore[no-any-return]


def _paths(kind: type, prefix: str) -> list[str]:
    """The dotted paths of all fields, those with fields inside included."""
    paths: list[str] = []
    for name, hint in get_type_hints(kind).items():
        paths.append(prefix + name)
        if get_origin(hint) is tuple:  # of pieces, which have numbers and no names
            continue
        for option in (hint, *get_args(hint)):
            if isinstance(option, type) and is_dataclass(option):
                paths += _paths(option, f"{prefix}{name}.")
    return paths


def _build(kind: type, content: object, path: str, problems: list[Problem]) -> object:
    """A dataclass from a mapping; `_ABSENT` if that was not possible, with the reasons in `problems`."""
    if not isinstance(content, Mapping):
        problems.append((path or "recipe", f"{content!r}; expected keys and values"))
        return _ABSENT
    hints = get_type_hints(kind)
    for key in content:
        if key not in hints:
            near = get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(hints)}"
            problems.append((_join(path, str(key)), f"is not a field{hint}"))
    values: dict[str, object] = {}
    for item in fields(kind):
        inner = _join(path, item.name)
        if item.name in content:
            values[item.name] = _convert(hints[item.name], content[item.name], inner, problems)
        elif item.default is MISSING and item.default_factory is MISSING:
            problems.append((inner, "is required"))
            values[item.name] = _ABSENT
    if _ABSENT in values.values():
        for name, value in values.items():  # what could be read is still checked, so that one look tells everything
            if isinstance(value, Checked):
                problems += value.problems(_join(path, name))
        return _ABSENT
    try:
        return kind(**values)
    except ConfigError as error:
        problems += [_split(line) for line in str(error).splitlines()[1:]]
        return _ABSENT


def _split(line: str) -> Problem:
    path, _, text = line.strip().partition(": ")
    return path, text


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(hint: Any, value: object, path: str, problems: list[Problem]) -> object:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    [option] = [option for option in options if option is not type(None)]
    if isinstance(option, type) and is_dataclass(option):
        return _build(option, value, path, problems)
    if get_origin(option) is Literal:
        if value in get_args(option):
            return value
        problems.append((path, f"{value!r}; expected one of {', '.join(map(str, get_args(option)))}"))
        return _ABSENT
    if get_origin(option) is Mapping:
        if isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair):
            return dict(value)
        problems.append((path, f"{value!r}; expected texts with texts (yes, no, on and off need quotation marks)"))
        return _ABSENT
    if get_origin(option) is tuple:
        if not isinstance(value, list | tuple):
            problems.append((path, f"{value!r}; expected a list"))
            return _ABSENT
        items = [_convert(get_args(option)[0], item, f"{path}[{number}]", problems) for number, item in enumerate(value)]
        return _ABSENT if _ABSENT in items else tuple(items)
    if option is float and isinstance(value, str):  # YAML 1.1 takes 3e-4, without a point, for a text
        try:
            return float(value)
        except ValueError:
            pass
    if option is float and type(value) is int:
        return float(value)
    if type(value) is option:
        return value
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    problems.append((path, f"{value!r}; expected {names[option]}"))
    return _ABSENT
