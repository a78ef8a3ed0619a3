"""An agent inside of a durable execution: after a restart nobody is asked twice and nothing is done twice, and a person may take days."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tripod.agents.agent import Agent
from tripod.agents.hooks import Approve
from tripod.agents.tool import tool
from tripod.chat.journalled import Journalled
from tripod.chat.scripted import ScriptedModel
from tripod.flows.durable import durable, wait_for
from tripod.flows.effects import effect
from tripod.flows.journal import Journal
from tripod.messages import ToolCall

SEARCH, PAY = ToolCall("1", "price", '{"item": "lamp"}'), ToolCall("2", "pay", '{"euros": 7}')


class Shop:
    """What the tools do to the world."""

    def __init__(self) -> None:
        self.prices = 0
        self.payments: list[tuple[int, str]] = []


def agent_of(shop: Shop, model: ScriptedModel) -> Any:
    @effect(repeatable=True)
    async def price(item: str) -> int:
        """Look up a price."""
        shop.prices += 1
        return 7

    @effect
    async def pay(euros: int, idempotency_key: str = "") -> str:
        """Pay."""
        shop.payments.append((euros, idempotency_key))
        return "receipt"

    async def person(call: ToolCall) -> bool:
        return await wait_for("approval", bool, question=f"{call.name}({call.arguments})?")

    agent = Agent(Journalled(model), [price, pay], hooks=[Approve(person, frozenset({"pay"}))])
    assert list(agent.tools["pay"].spec.parameters["properties"]) == ["euros"]  # the key is none of the model's business

    @durable
    async def buy(item: str) -> str:
        return (await agent(f"Buy a {item}")).value

    return buy


def test_an_approval_outlives_the_process_and_nothing_is_asked_or_done_twice(tmp_path: Path) -> None:
    async def before(shop: Shop, model: ScriptedModel) -> None:
        async with Journal(tmp_path / "journal.db") as journal:
            found = await journal.run(agent_of(shop, model), "lamp", id="order-1")
        assert (found.state, shop.payments) == ("waiting", [])

    async def after(shop: Shop, model: ScriptedModel) -> str:
        async with Journal(tmp_path / "journal.db") as journal:
            await journal.answer("order-1", "approval", True)
            return str((await journal.run(agent_of(shop, model), "lamp", id="order-1")).result)

    first, second = Shop(), Shop()
    asyncio.run(before(first, ScriptedModel([SEARCH, PAY])))
    assert first.prices == 1
    assert asyncio.run(after(second, ScriptedModel(["Bought."]))) == "Bought."
    assert second.prices == 0  # replayed
    [(euros, key)] = second.payments
    assert euros == 7
    assert key


def test_a_tool_that_ran_out_of_time_and_must_not_be_repeated_stops_the_execution() -> None:
    happened: list[str] = []

    @tool(timeout_s=0.3)
    @effect
    async def pay(euros: int) -> str:
        """Pay."""
        happened.append("pay")
        await asyncio.sleep(60)
        return "receipt"

    model = ScriptedModel([ToolCall("1", "pay", '{"euros": 7}'), "Bought."])
    agent = Agent(Journalled(model), [pay])

    @durable
    async def buy(item: str) -> str:
        return (await agent(f"Buy a {item}")).value

    async def go() -> None:
        async with Journal(":memory:") as journal:
            found = await journal.run(buy, "lamp", id="x")
            assert (found.state, found.in_doubt) == ("in doubt", ("pay",))
            assert [one.state for one in await journal.history("x")] == ["done", "intent"]  # the model was not told, to try again
            assert (await journal.resume("x", buy, skip={"pay": "a receipt"})).result == "Bought."
        assert happened == ["pay"]

    asyncio.run(go())
