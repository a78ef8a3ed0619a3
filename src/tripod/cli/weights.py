"""The option `--weights` of commands that open a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tripod.ops.linear_formats import LinearFormat


def weight_format(value: str | None) -> LinearFormat | None:
    """The format that was named; None where none was.

    Raises:
        ConfigError: there is no such format.
    """
    if value is None:
        return None
    from tripod.ops.linear import INT4_GROUP
    from tripod.ops.linear_formats import check_format

    return check_format(value, INT4_GROUP if value == "int4" else None)
