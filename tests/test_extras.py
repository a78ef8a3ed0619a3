"""The extras of the package, and what is said of them where one is missing."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def extras() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return found


def brought_by(extra: str) -> set[str]:
    """The distributions of an extra, those of the extras that it names included."""
    names: set[str] = set()
    for requirement in extras()[extra]:
        if own := re.fullmatch(r"tripod\[(.+)\]", requirement):
            names |= {name for other in own[1].split(",") for name in brought_by(other)}
        else:
            names.add(re.match(r"[\w.-]+", requirement)[0].lower())  # type: ignore[index]
    return names


def test_an_error_about_a_missing_package_names_an_extra_that_brings_it() -> None:
    seen = 0
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("MissingExtraError", "reader")):
                continue
            told = {keyword.arg: keyword.value for keyword in node.keywords}
            if node.func.id == "MissingExtraError":
                package, extra = node.args[:2] if len(node.args) > 1 else (None, None)  # what a worker process sent is raised again
            else:
                package, extra = node.args[1], told.get("extra", ast.Constant("documents"))
            if not isinstance(extra, ast.Constant):  # `reader` itself, whose callers are looked at
                continue
            assert extra.value in extras(), f"{file}:{node.lineno}"
            if isinstance(package, ast.Constant):
                assert str(package.value).lower() in brought_by(str(extra.value)), f"{file}:{node.lineno}"
            seen += 1
    assert seen > 10


def test_the_doctor_looks_for_every_package_of_the_legs() -> None:
    from tripod.cli.doctor import _EXTRAS

    for extra in ("engine", "grammar", "serve", "training"):
        assert brought_by(extra) <= {name.lower() for names in _EXTRAS.values() for name in names}, extra
