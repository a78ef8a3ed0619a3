"""An order that waits for a person and survives its process: run it, run it again, and it goes on where it was.

python examples/durable_order.py orders.db lamp          # waits for an approval; the process ends
python examples/durable_order.py orders.db lamp yes      # another process: approved, paid once, done
python examples/durable_order.py orders.db lamp          # done; nothing runs again
"""

from __future__ import annotations

import sys

import tripod
from tripod.flows.durable import wait_for
from tripod.flows.effects import effect


@effect(repeatable=True)  # only reads, so it may be called again
async def price(item: str) -> int:
    print(f"looking up {item}")
    return 10 * len(item)


@effect
async def charge(amount: int, idempotency_key: str = "") -> str:  # the tool sees by the key that a call is the same call again
    print(f"charging {amount} under {idempotency_key[:8]}")
    return f"receipt for {amount}"


@tripod.durable
async def order(item: str) -> str:
    amount = await price(item)
    if not await wait_for("approval", bool, question=f"Buy a {item} for {amount}?"):
        return "not bought"
    return await charge(amount)


async def main(location: str, item: str, answer: str | None) -> None:
    async with tripod.Journal(location) as journal:
        execution = await journal.run(order, item, id=f"order-{item}")
        if execution.state == "waiting" and answer is not None:
            await journal.answer(execution.id, "approval", answer == "yes")
            execution = await journal.run(order, item, id=execution.id)
        print(execution.state, execution.value or execution.waiting_for)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: python {sys.argv[0]} JOURNAL ITEM [yes|no]")
    tripod.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else None))
