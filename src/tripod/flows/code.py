"""What the code of an execution is, so that a change between two of its runs is seen."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import tokenize
from collections.abc import Iterator
from types import CodeType
from typing import Any


def fingerprint(function: Any) -> str:
    """Names what a function does: its source without decorators, comments, docstring and layout; where there is no source, its bytecode."""
    found = _definition(function)
    if found is None:
        code = getattr(function, "__code__", None)
        described = repr(list(_instructions(code))) if code is not None else repr(type(function))
    else:
        found.decorator_list = []
        if ast.get_docstring(found) is not None and len(found.body) > 1:
            found.body = found.body[1:]
        described = ast.unparse(found)  # which other versions of Python write in the same way
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _definition(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Its source, parsed; None where there is none, or where what stands in its file now is another thing."""
    try:
        [found] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, ValueError, SyntaxError, tokenize.TokenError):
        return None
    is_it = isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == function.__code__.co_name
    return found if is_it else None  # type: ignore[return-value]


def _instructions(code: CodeType) -> Iterator[object]:
    yield code.co_code
    yield code.co_names
    for constant in code.co_consts:
        yield from _instructions(constant) if isinstance(constant, CodeType) else [constant]
