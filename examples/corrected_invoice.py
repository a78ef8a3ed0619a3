"""A model reads an invoice; the type says when one is right, and what is wrong the model is told until it is.

python examples/corrected_invoice.py http://127.0.0.1:8000/v1 invoice.txt
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tripod
from tripod.chat.parse import parse
from tripod.protocols import ChatModel


@dataclass
class Line:
    name: str
    price: float


@dataclass
class Invoice:
    lines: list[Line]
    total: float

    def __post_init__(self) -> None:
        added = sum(line.price for line in self.lines)
        if abs(added - self.total) >= 0.005:
            raise ValueError(f"the lines add up to {added:.2f}, and the total says {self.total:.2f}")


async def read_invoice(model: ChatModel, text: str) -> Invoice:
    return (await parse(model, f"Read this invoice:\n{text}", Invoice, attempts=4)).value


async def main(address: str, file: str) -> None:
    async with tripod.Model(address) as model:
        print(await read_invoice(model, Path(file).read_text(encoding="utf-8")))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} MODEL FILE")
    tripod.run(main(sys.argv[1], sys.argv[2]))
