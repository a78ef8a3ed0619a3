"""A tool of ours, as others are given it."""

from __future__ import annotations

from tripod.agents.context import Context
from tripod.errors import ToolError


async def price(item: str, context: Context[dict[str, int]], amount: int = 1) -> int:
    """What so many of an item cost.

    Args:
        item: its name.
        amount: how many.
    """
    if item not in context.deps:
        raise ToolError(f"there is no {item}")
    return context.deps[item] * amount


PRICES = {"lamp": 40}
SCHEMA = {  # as JSON schema has it, written by hand
    "type": "object",
    "properties": {
        "item": {"type": "string", "description": "its name."},
        "amount": {"type": "integer", "description": "how many.", "default": 1},
    },
    "required": ["item"],
    "additionalProperties": False,
}
