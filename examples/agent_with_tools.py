"""An agent with two tools and a typed result.

    python examples/agent_with_tools.py http://127.0.0.1:8000/v1 "A hotel in Oslo for two nights, under 400 euros"

A tool is a typed function: a model reads its hints and its docstring. The result is a `Trip`, or the run is an error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tripod
from tripod.protocols import ChatModel

HOTELS = {"Oslo": {"Harbour Inn": 1500.0, "Palace": 3900.0}, "Bergen": {"Fjord Lodge": 1200.0}}  # crowns a night


@dataclass
class Trip:
    city: str
    hotel: str
    nights: int
    euros: float


async def search(city: str) -> dict[str, float]:
    """Find hotels in a city, with their price a night in Norwegian crowns."""
    return HOTELS.get(city, {})


async def convert(crowns: float) -> float:
    """Change Norwegian crowns into euros."""
    return round(crowns / 11.7, 2)


async def plan(model: ChatModel, wish: str) -> Trip:
    agent = tripod.Agent(model, [search, convert], returns=Trip)
    return (await agent(wish)).value


async def main(address: str, wish: str) -> None:
    async with tripod.Model(address) as model:
        print(await plan(model, wish))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} MODEL WISH")
    tripod.run(main(sys.argv[1], sys.argv[2]))
