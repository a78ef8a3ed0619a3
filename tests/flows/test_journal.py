"""What a journal promises: results are replayed, effects are not; what is in doubt is named; a wait survives; nothing runs twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

import tripod
from tripod.errors import ConfigError, JournalError
from tripod.flows import working
from tripod.flows.database import UnreachableError
from tripod.flows.durable import Durable, durable, sleep, wait_for
from tripod.flows.effects import effect
from tripod.flows.flow import Flow
from tripod.flows.journal import Execution, Journal
from tripod.flows.step import each, loop, step
from tripod.flows.working import ChangedError, EffectError, LostLeaseError, Working

T = TypeVar("T")
BACKENDS = ["asyncio", "trio"]


@dataclass(frozen=True)
class Receipt:
    amount: int
    key: str


class Shop:
    """Effects that count how often they happened, and may be made to break off, as a killed process does."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.breaks: set[str] = set()  # effects that never return: their process dies

        @effect
        async def price(item: str) -> int:
            await self.happens("price")
            return len(item)

        @effect
        async def charge(amount: int, idempotency_key: str = "") -> Receipt:
            await self.happens("charge")
            return Receipt(amount, idempotency_key)

        @effect
        async def ship(item: str) -> str:
            await self.happens("ship")
            return f"{item} shipped"

        @effect(repeatable=True)
        def look_up(item: str) -> int:
            self.happened.append("look_up")
            return 3

        @durable
        async def order(item: str) -> str:
            amount = await price(item)
            receipt = await charge(amount)
            return f"{await ship(item)} for {receipt.amount}"

        self.price, self.charge, self.ship, self.look_up, self.order = price, charge, ship, look_up, order

    async def happens(self, name: str) -> None:
        self.happened.append(name)
        if name in self.breaks:
            raise Died


class Died(BaseException):
    """The process ends here: no `except Exception` sees it."""


async def dies(journal: Journal, function: Any, *args: Any, id: str = "x") -> None:
    """Run it in a worker that dies; its lease runs out by itself in `lease_s`."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - an exception or a group of them
        await journal.run(function, *args, id=id)
    assert caught.group_contains(Died) if isinstance(caught.value, BaseExceptionGroup) else isinstance(caught.value, Died)


def with_journal(location: str, use: Callable[[Journal], Coroutine[Any, Any, T]], backend: str = "asyncio", **options: Any) -> T:
    async def go() -> T:
        async with Journal(location, **options) as journal:
            return await use(journal)

    return anyio.run(go, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_execution_runs_and_one_that_is_done_is_not_run_again(location: str, backend: str) -> None:
    shop = Shop()

    async def use(journal: Journal) -> None:
        first = await journal.run(shop.order, "lamp", id="order-1")
        again = await journal.run(shop.order, "lamp", id="order-1")
        assert first == again == Execution(id="order-1", function="order", state="done", value="lamp shipped for 4")
        assert first.result == "lamp shipped for 4"
        with pytest.raises(ConfigError, match=r"'order-1' is order\(\{\"item\":\"lamp\"\}\), not order\(\{\"item\":\"sofa\"\}\)"):
            await journal.run(shop.order, "sofa", id="order-1")

    with_journal(location, use, backend)
    assert shop.happened == ["price", "charge", "ship"]


def test_the_intent_is_there_before_the_effect_and_the_result_after(location: str) -> None:
    seen: list[tuple[str, str | None]] = []

    async def use(journal: Journal) -> None:
        @effect
        async def watched(n: int) -> int:
            seen.extend((one.state, one.result) for one in await journal.history("x"))
            return n + 1

        @durable
        async def count() -> int:
            return await watched(await watched(0))

        assert (await journal.run(count, id="x")).result == 2
        history = await journal.history("x")
        assert [(one.path, one.state, one.result) for one in history] == [("watched", "done", "1"), ("watched#2", "done", "2")]

    with_journal(location, use)
    assert seen == [("intent", None), ("done", "1"), ("intent", None)]


def test_an_effect_without_a_key_whose_outcome_is_unknown_is_in_doubt_and_never_repeated(location: str) -> None:
    shop = Shop()
    shop.breaks = {"ship"}

    async def use(journal: Journal) -> None:
        await dies(journal, shop.order, "lamp")
        shop.breaks.clear()
        for _ in range(2):  # however often one asks
            found = await journal.run(shop.order, "lamp", id="x")
            assert (found.state, found.in_doubt) == ("in doubt", ("ship",))
        assert shop.happened == ["price", "charge", "ship"]
        with pytest.raises(JournalError, match=r"it is in doubt; nobody knows whether ship happened: look, then resume with retry"):
            found.result  # noqa: B018
        with pytest.raises(ConfigError, match=r"has no step 'shp' that is in doubt or has failed; there are: ship"):
            await journal.resume("x", shop.order, retry=["shp"])
        fork = await journal.fork("x")
        skipped = await journal.resume("x", shop.order, skip={"ship": "lamp was there"})
        assert skipped.result == "lamp was there for 4"
        assert shop.happened == ["price", "charge", "ship"]
        retried = await journal.resume(fork, shop.order, retry=["ship"])
        assert retried.result == "lamp shipped for 4"
        assert shop.happened == ["price", "charge", "ship", "ship"]

    with_journal(location, use)


def test_the_key_reaches_the_tool_and_is_the_same_when_it_is_called_again(location: str) -> None:
    shop = Shop()
    keys: list[str] = []

    @effect
    async def pay(amount: int, idempotency_key: str = "") -> Receipt:
        keys.append(idempotency_key)
        await shop.happens("pay")
        return Receipt(amount, idempotency_key)

    @durable
    async def buy(amount: int) -> Receipt:
        return await pay(amount)

    shop.breaks = {"pay"}

    async def use(journal: Journal) -> Execution:
        await dies(journal, buy, 3)
        shop.breaks.clear()
        return await journal.run(buy, 3, id="x")

    found = with_journal(location, use)
    assert found.result == Receipt(3, keys[0])
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32


def test_what_may_be_repeated_is_never_in_doubt_and_plain_functions_run_in_a_thread(location: str) -> None:
    shop = Shop()
    dead: list[int] = []

    @effect(repeatable=True)
    async def read(item: str) -> int:
        dead.append(1)
        if len(dead) == 1:
            raise Died
        return 3

    @durable
    async def both(item: str) -> int:
        return await read(item) + await shop.look_up(item)

    async def use(journal: Journal) -> None:
        await dies(journal, both, "lamp")
        assert (await journal.run(both, "lamp", id="x")).result == 6
        assert [one.num_attempts for one in await journal.history("x")] == [2, 1]

    with_journal(location, use)


def test_an_effect_that_raises_raises_the_same_whenever_it_is_replayed(location: str) -> None:
    calls: list[int] = []

    @effect
    async def flaky(n: int) -> int:
        calls.append(n)
        raise TimeoutError("no answer")

    @durable
    async def careful() -> str:
        try:
            await flaky(1)
        except EffectError as error:
            await wait_for("go", bool)
            return error.kind
        return ""

    @durable
    async def careless() -> int:
        return await flaky(2)

    async def use(journal: Journal) -> None:
        assert (await journal.run(careful, id="a")).state == "waiting"
        await journal.answer("a", "go", True)
        assert (await journal.resume("a", careful)).result == "TimeoutError"
        for _ in range(2):
            with pytest.raises(EffectError, match="flaky failed: TimeoutError: no answer"):
                await journal.run(careless, id="b")
        assert (await journal.look("b")).error == "EffectError: flaky failed: TimeoutError: no answer"
        assert calls == [1, 2]
        with pytest.raises(EffectError):
            await journal.resume("b", careless, retry=["flaky"])
        assert calls == [1, 2, 2]
        assert (await journal.resume("b", careless, skip={"flaky": 5})).result == 5
        assert (await journal.look("b")).error is None

    with_journal(location, use)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wait_of_days_survives_a_restart(shared_location: str, backend: str) -> None:
    shop = Shop()
    now_s = 1_000_000.0
    day_s = 86_400.0

    @durable
    async def campaign(item: str) -> str:
        amount = await shop.price(item)
        if not await wait_for("approve", bool, question=f"Spend {amount}?"):
            return "refused"
        await sleep(3 * day_s)
        return await shop.ship(item)

    async def later(journal: Journal) -> Execution:
        await journal.work([campaign])
        return await journal.look("x", campaign)

    def at(days: float, use: Callable[[Journal], Coroutine[Any, Any, T]]) -> T:
        return with_journal(shared_location, use, backend, clock=lambda: now_s + days * day_s)  # a process of its own each time

    assert at(0, lambda journal: journal.run(campaign, "lamp", id="x")).waiting_for == ("approve",)
    assert at(1, later).state == "waiting"
    [asked] = [one for one in at(1, lambda journal: journal.history("x")) if one.state == "waiting"]
    assert asked.arguments == '{"question":"Spend 4?"}'
    with pytest.raises(ConfigError, match="does not wait for 'aprove'; it waits for approve"):
        at(2, lambda journal: journal.answer("x", "aprove", True))
    at(2, lambda journal: journal.answer("x", "approve", True))
    assert at(2, later).wake_at_s == now_s + 5 * day_s
    assert at(4.9, later).state == "sleeping"
    assert shop.happened == ["price"]
    assert at(5.1, later).result == "lamp shipped"
    assert shop.happened == ["price", "ship"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_question_stands_for_as_long_as_it_says(shared_location: str, backend: str) -> None:
    shop = Shop()
    day_s = 86_400.0

    @durable
    async def campaign(item: str) -> str:
        try:
            agreed = await wait_for("approve", bool, timeout_s=3 * day_s)
        except TimeoutError as late:
            return f"{await shop.look_up(item)} seen, {late}"
        return f"{item}: {agreed}"

    async def later(journal: Journal) -> list[str]:
        await journal.work([campaign])
        return [found.state for found in [await journal.look(id, campaign) for id in ("answered", "late", "forgotten")]]

    def at(days: float, use: Callable[[Journal], Coroutine[Any, Any, T]]) -> T:
        return with_journal(shared_location, use, backend, clock=lambda: 1e6 + days * day_s)

    for id in ("answered", "late", "forgotten"):
        found = at(0, lambda journal: journal.run(campaign, "lamp", id=id))  # noqa: B023 - called at once
        assert (found.waiting_for, found.wake_at_s) == (("approve",), 1e6 + 3 * day_s)
    at(2, lambda journal: journal.answer("answered", "approve", True))
    assert at(2.9, later) == ["done", "waiting", "waiting"]
    at(4, lambda journal: journal.answer("late", "approve", False))  # nobody has noticed yet that it is late
    assert at(4, later) == ["done", "done", "done"]
    results = [at(5, lambda journal: journal.look(id, campaign)).result for id in ("answered", "late", "forgotten")]  # noqa: B023
    assert results == ["lamp: True", "lamp: False", "3 seen, nobody answered 'approve' in time"]
    with pytest.raises(ConfigError, match="does not wait for 'approve'; it waits for nobody"):
        at(5, lambda journal: journal.answer("forgotten", "approve", True))


def test_a_question_that_is_answered_while_its_worker_gives_up_keeps_its_answer() -> None:
    now_s = 0.0

    @durable
    async def early() -> bool:
        return await wait_for("go", bool, timeout_s=10.0)

    async def use(journal: Journal) -> None:
        nonlocal now_s
        assert (await journal.run(early, id="x")).state == "waiting"
        now_s = 11.0
        original = Working._gave_up

        async def answered_first(working: Working, record: Any) -> bool:
            await journal.answer("x", "go", True)
            return await original(working, record)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Working, "_gave_up", answered_first)
            assert (await journal.resume("x", early)).state == "ready"
        assert (await journal.resume("x", early)).result is True

    with_journal(":memory:", use, clock=lambda: now_s)


def test_an_answer_that_comes_before_its_execution_has_parted_is_not_lost(location: str) -> None:
    """Of two branches one asks a person and the other is at work; the person answers while it still is."""
    shop = Shop()

    async def use(journal: Journal) -> None:
        @effect
        async def work() -> str:
            while [one.state for one in await journal.history("x") if one.path == "go"] != ["waiting"]:
                await anyio.sleep(0.001)
            await journal.answer("x", "go", True)
            await shop.happens("work")
            return "done"

        @durable
        async def job() -> bool:
            answers: list[bool] = []

            async def ask() -> None:
                answers.append(await wait_for("go", bool))

            async with anyio.create_task_group() as group:
                group.start_soon(work)
                group.start_soon(ask)
            return answers[0]

        assert (await journal.run(job, id="x")).state == "ready"
        assert await journal.work([job]) == 1
        assert (await journal.look("x", job)).result is True
        assert (await journal.record("x")).wake_at_s is None

    with_journal(location, use)
    assert shop.happened == ["work"]


def test_an_execution_that_is_done_cannot_be_cancelled_even_if_it_ends_meanwhile(shared_location: str) -> None:
    shop = Shop()
    worker = Journal(shared_location)

    class Looks(Journal):
        async def record(self, id: str) -> Any:
            seen = await super().record(id)
            await worker.resume("y", shop.order)  # it ends just after it was looked at
            return seen

    async def go() -> None:
        async with worker, Looks(shared_location) as other:
            await worker.run(shop.order, "lamp", id="x")
            await worker.fork("x", new_id="y")
            with pytest.raises(JournalError, match="'y' is done, so it cannot be cancelled"):
                await other.cancel("y")
            assert (await worker.look("y")).state == "done"

    anyio.run(go)


def test_workers_agree_when_a_lease_is_over_whatever_their_own_clocks_say(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time

    async def go() -> None:
        async with Journal(f"{postgres}#clocks") as first, Journal(f"{postgres}#clocks") as second:

            @durable
            async def job() -> int:
                monkeypatch.setattr(time, "time", lambda: real() + 3600.0)  # as on another machine, an hour ahead
                assert abs(second.clock() - real()) > 3000.0  # until it has spoken with the server
                with pytest.raises(JournalError, match="is worked on by"):
                    await second.resume("x", job)
                assert abs(second.clock() - real()) < 5.0
                monkeypatch.setattr(time, "time", real)
                return 1

            assert (await first.run(job, id="x")).result == 1

    anyio.run(go)


def test_a_journal_that_is_away_for_a_while_is_no_failure_of_the_function(location: str) -> None:
    async def use(journal: Journal) -> None:
        async def rename(table: str, to: str) -> None:
            await journal.transaction(lambda execute: execute(f"ALTER TABLE {table} RENAME TO {to}"))

        @effect(repeatable=True)
        async def outlasts() -> int:
            await rename("executions", "gone")  # no sign of life can be given
            await anyio.sleep(0.1)
            await rename("gone", "executions")
            return 1

        @effect(repeatable=True)
        async def breaks() -> int:
            if len(await journal.history("x")) == 2 and not broken:
                broken.append(1)
                await rename("steps", "gone")
            return 2

        @durable
        async def job() -> int:
            return await outlasts() + await breaks()

        broken: list[int] = []
        with pytest.raises(UnreachableError, match="steps"):
            await journal.run(job, id="x")
        await rename("gone", "steps")
        assert (await journal.look("x")).state == "ready"
        assert (await journal.resume("x", job)).result == 3

    with_journal(location, use, lease_s=0.06)


def test_a_lease_is_renewed_for_as_long_as_an_effect_takes(shared_location: str) -> None:
    async def go() -> None:
        async with Journal(shared_location, lease_s=0.2) as first, Journal(shared_location, lease_s=0.2) as second:

            @effect
            async def long() -> int:
                for _ in range(5):
                    await anyio.sleep(0.1)
                    with pytest.raises(JournalError, match="is worked on by"):
                        await second.resume("x", job)
                return 1

            @durable
            async def job() -> int:
                return await long()

            assert (await first.run(job, id="x")).result == 1

    anyio.run(go)


def test_two_workers_never_run_the_same_step(shared_location: str) -> None:
    """Two workers, each with its own connection, race for 20 executions; every effect happens once."""
    happened: list[str] = []

    @effect
    async def do(name: str) -> str:
        happened.append(name)
        await anyio.sleep(0.001)
        return name

    @durable
    async def job(name: str) -> str:
        await wait_for("start", bool)
        return await do(f"{name} first") + await do(f"{name} second")

    async def race() -> None:
        async with Journal(shared_location) as one, Journal(shared_location) as other:
            for number in range(20):
                await one.run(job, f"job{number}", id=f"job{number}")
                await one.answer(f"job{number}", "start", True)
            async with anyio.create_task_group() as group:
                for worker in (one, other, one, other):
                    group.start_soon(worker.work, [job])
            assert {record.state for record in await one.records()} == {"done"}

    anyio.run(race)
    assert sorted(happened) == sorted(f"job{number} {part}" for number in range(20) for part in ("first", "second"))


def test_a_worker_that_lost_its_lease_does_nothing_more(shared_location: str) -> None:
    """The first worker gives no sign of life for longer than its lease; the second takes over; the first comes back and stops."""
    now_s = 0.0
    happened: list[str] = []
    entered, go_on = anyio.Event(), anyio.Event()

    @effect(repeatable=True)
    async def slow(n: int) -> int:
        happened.append("slow")
        if len(happened) == 1:
            entered.set()
            await go_on.wait()
        return n

    @effect
    async def after(n: int) -> int:
        happened.append("after")
        return n

    @durable
    async def job() -> int:
        return await after(await slow(1))

    async def go() -> None:
        nonlocal now_s
        first = Journal(shared_location, lease_s=30, clock=lambda: now_s)
        async with first, Journal(shared_location, lease_s=30, clock=lambda: now_s) as second:

            async def stalled() -> None:
                with pytest.raises(LostLeaseError, match="was taken by another worker"):
                    await first.run(job, id="x")

            async with anyio.create_task_group() as group:
                group.start_soon(stalled)
                await entered.wait()
                with pytest.raises(JournalError, match=r"is worked on by .*; without a sign of life it may be taken in 30.0 s"):
                    await second.resume("x", job)
                now_s = 31.0
                assert (await second.resume("x", job)).result == 1
                go_on.set()

    anyio.run(go)
    assert happened == ["slow", "slow", "after"]


def test_a_change_of_the_code_is_seen_and_named(location: str) -> None:
    shop = Shop()

    async def before(item: str) -> str:
        await shop.price(item)
        await wait_for("go", bool)
        return await shop.ship(item)

    async def after(item: str) -> str:
        await shop.charge(7)
        await wait_for("go", bool)
        return await shop.ship(item)

    async def reworded(item: str) -> str:
        """The same steps, told in another way."""
        amount = await shop.price(item)
        assert amount
        await wait_for("go", bool)
        return await shop.ship(item)

    def named(function: Any) -> Durable[..., Any]:
        function.__name__ = "job"
        return durable(function)

    async def use(journal: Journal) -> None:
        await journal.run(named(before), "lamp", id="x")
        with pytest.raises(ChangedError, match=r"the code of 'job' has changed since it ran \([0-9a-f]{16} then, [0-9a-f]{16} now\)"):
            await journal.resume("x", named(after))
        with pytest.raises(
            ChangedError, match=r"asks for step 'charge', where the journal holds 'price' \(price\(\{\"item\":\"lamp\"\}\)\)"
        ):
            await journal.resume("x", named(after), accept_changes=True)
        assert shop.happened == ["price"]  # charge was not called
        await journal.answer("x", "go", True)
        assert (await journal.resume("x", named(reworded), accept_changes=True)).result == "lamp shipped"

    with_journal(location, use)


def test_code_that_does_not_fit_leaves_an_execution_as_it_was(location: str) -> None:
    shop = Shop()
    now_s = 0.0

    async def sleeps(item: str) -> str:
        await sleep(10.0)
        return await shop.ship(item)

    async def other(item: str) -> str:
        await shop.price(item)
        return ""

    other.__name__ = "sleeps"

    async def use(journal: Journal) -> None:
        nonlocal now_s
        await journal.run(sleeps, "lamp", id="x")
        before = await journal.record("x")
        for accept_changes in (False, True):
            with pytest.raises(ChangedError):
                await journal.resume("x", other, accept_changes=accept_changes)
            assert await journal.record("x") == before
        now_s = 11.0
        assert await journal.work([sleeps]) == 1
        assert (await journal.look("x")).state == "done"

    with_journal(location, use, clock=lambda: now_s)
    assert shop.happened == ["ship"]


def test_other_arguments_and_steps_left_over_are_named(location: str) -> None:
    amount = 3
    asks = True

    @effect
    async def pay(amount: int) -> int:
        return amount

    @durable
    async def job() -> int:
        paid = await pay(amount) if asks else 0  # depends on what is not an argument: it must not
        return paid if await wait_for("go", bool) else 0

    @durable
    async def short() -> int:
        return await pay(1) if asks else 0

    async def use(journal: Journal) -> None:
        nonlocal amount, asks
        await journal.run(job, id="x")
        amount = 4
        with pytest.raises(ChangedError, match=r"step 'pay' was pay\(\{\"amount\":3\}\) when it ran, and is pay\(\{\"amount\":4\}\) now"):
            await journal.resume("x", job)
        await journal.run(short, id="y")
        fork = await journal.fork("y")
        asks = False
        with pytest.raises(ChangedError, match="ended without asking for pay, which the journal holds"):
            await journal.resume(fork, short)

    with_journal(location, use)


def test_layout_and_comments_are_no_change_of_the_code() -> None:
    from tripod.flows.code import fingerprint

    def first() -> Any:
        async def job(a: int) -> int:
            return a + 1

        return job

    def second() -> Any:
        async def job(a: int) -> int:
            """With a docstring."""
            # and a comment
            return (a
                + 1)  # fmt: skip

        return job

    def third() -> Any:
        async def job(a: int) -> int:
            return a + 2

        return job

    assert fingerprint(first()) == fingerprint(second()) != fingerprint(third())


def test_a_fork_shares_the_past_and_has_a_future_of_its_own(location: str) -> None:
    shop = Shop()

    async def use(journal: Journal) -> None:
        await journal.run(shop.order, "lamp", id="x")
        fork = await journal.fork("x", before="charge", new_id="y")
        assert (await journal.record(fork)).forked_from == "x"
        assert (await journal.resume(fork, shop.order)).result == "lamp shipped for 4"
        assert shop.happened == ["price", "charge", "ship", "charge", "ship"]
        receipts = [(await journal.history(id))[1].result for id in ("x", "y")]
        assert receipts[0] != receipts[1]  # other keys, so the tool takes it for another payment
        with pytest.raises(ConfigError, match="has no step 'pay'; it has price, charge, ship"):
            await journal.fork("x", before="pay")
        with pytest.raises(ConfigError, match="there is an execution 'y' already"):
            await journal.fork("x", new_id="y")

    with_journal(location, use)


def test_one_that_is_cancelled_stops_before_its_next_effect(location: str) -> None:
    shop = Shop()

    async def use(journal: Journal) -> None:
        @effect
        async def cancels() -> None:
            await journal.cancel("x")

        @durable
        async def job() -> str:
            await cancels()
            return await shop.ship("lamp")

        with pytest.raises(LostLeaseError, match="cancelled"):
            await journal.run(job, id="x")
        assert shop.happened == []
        assert (await journal.look("x")).state == "cancelled"
        with pytest.raises(JournalError, match="was cancelled; fork it"):
            await journal.resume("x", job)

    with_journal(location, use)


def test_what_is_old_and_finished_is_forgotten_with_its_steps(location: str) -> None:
    shop = Shop()
    now_s = 0.0

    @durable
    async def waits() -> bool:
        return await wait_for("go", bool)

    async def use(journal: Journal) -> None:
        nonlocal now_s
        await journal.run(shop.order, "old", id="old")
        await journal.run(waits, id="waits")
        now_s = 100.0
        await journal.run(shop.order, "new", id="new")
        assert await journal.forget(50.0) == 1
        assert [record.id for record in await journal.records()] == ["new", "waits"]
        with pytest.raises(ConfigError, match="there is no execution 'old'"):
            await journal.history("old")

    with_journal(location, use, clock=lambda: now_s)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_flow_is_durable_step_by_step_and_item_by_item(location: str, backend: str) -> None:
    happened: list[Any] = []
    breaks_at: list[Any] = ["item 2"]

    def happens(what: Any) -> None:
        happened.append(what)
        if what in breaks_at:
            raise Died

    def words(text: str) -> list[Receipt]:
        happens("words")
        return [Receipt(len(one), one) for one in text.split()]

    async def weigh(receipt: Receipt) -> int:
        happens(f"item {receipt.amount}")
        return receipt.amount

    def total(weights: list[int]) -> int:
        happens("total")
        return sum(weights)

    def halve(number: int) -> int:
        happens(f"halve {number}")
        return number // 2

    async def count(number: int) -> AsyncIterator[int]:
        for one in range(number):
            happens(f"count {one}")
            yield one

    inner = Flow(total, name="summed")
    flow = Flow(
        words,
        each(weigh, limit=1),
        step(inner, weights="weigh"),
        loop(halve, until=lambda number: number < 3, at_most=5, number="summed"),
        step(count, number="halve"),
        name="work",
    )

    async def use(journal: Journal) -> None:
        await dies(journal_run(journal), flow)
        breaks_at.clear()
        found = await journal.run(flow, text="a bb ccc", id="x")
        assert found.in_doubt == ("weigh[1]",)
        found = await journal.resume("x", flow, retry=["weigh[1]"])
        assert found.result == [0]
        paths = [one.path for one in await journal.history("x")]
        assert paths == ["words", "weigh[0]", "weigh[1]", "weigh[2]", "summed/total", "halve[0]", "halve[1]", "count"]

    def journal_run(journal: Journal) -> Any:
        class Run:
            async def run(self, function: Any, id: str) -> Execution:
                return await journal.run(function, text="a bb ccc", id=id)

        return Run()

    with_journal(location, use, backend)
    assert happened == ["words", "item 1", "item 2", "item 2", "item 3", "total", "halve 6", "halve 3", "count 0"]


def test_a_flow_whose_wires_changed_is_seen(location: str) -> None:
    def one(x: int) -> int:
        return x

    async def ask(one: int) -> bool:
        return await wait_for("go", bool)

    async def use(journal: Journal) -> None:
        @durable
        async def outer() -> int:
            return int(await Flow(one)(x=2)) + int(await Flow(one)(x=3)) + int(await wait_for("go", bool))

        assert (await journal.run(outer, id="x")).state == "waiting"
        assert [record.path for record in await journal.history("x")] == ["flow/one", "flow#2/one", "go"]
        await journal.answer("x", "go", True)
        assert (await journal.run(outer, id="x")).result == 6
        await journal.run(Flow(one, name="f"), x=1, id="y")
        await journal.fork("y", new_id="z")
        with pytest.raises(ChangedError, match="the code of 'f' has changed"):
            await journal.resume("z", Flow(one, step(one, name="two", x="one"), name="f", returns="two"))

    with_journal(location, use)


def test_what_cannot_come_back_as_it_was_is_refused_when_it_happens(location: str) -> None:
    @effect
    async def untyped(n):  # type: ignore[no-untyped-def]
        return Receipt(n, "k")

    @durable
    async def job() -> int:
        await untyped(1)
        return 1

    async def use(journal: Journal) -> None:
        with pytest.raises(EffectError, match="the result of 'untyped' is a Receipt, which would come back from the journal as a dict"):
            await journal.run(job, id="x")

    with_journal(location, use)


def test_an_answer_of_another_type_is_told_and_may_be_given_again(location: str) -> None:
    @durable
    async def job() -> bool:
        return await wait_for("go", bool)

    async def use(journal: Journal) -> None:
        await journal.run(job, id="x")
        await journal.answer("x", "go", "perhaps")
        with pytest.raises(JournalError, match=r"the result of 'go' is in the journal as \"perhaps\", which is no bool: .*; answer again"):
            await journal.resume("x", job)
        found = await journal.look("x", job)
        assert (found.state, found.waiting_for) == ("waiting", ("go",))
        await journal.answer("x", "go", True)
        assert (await journal.resume("x", job)).result is True
        with pytest.raises(ConfigError, match="execution 'x', which is done, does not wait for 'go'; it waits for nobody"):
            await journal.answer("x", "go", False)
        with pytest.raises(ConfigError, match="there is no execution 'y' in"):
            await journal.answer("y", "go", True)

    with_journal(location, use)


@pytest.mark.parametrize("point", range(12))
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_whose_caller_is_cancelled_leaves_no_task_and_no_lease(backend: str, point: int) -> None:
    """At the n-th checkpoint; what was under way is in doubt, and nothing else is lost."""
    steps = 0
    scope: anyio.CancelScope

    @effect
    async def work(n: int) -> int:
        nonlocal steps
        for _ in range(3):
            steps += 1
            if steps == point + 1:
                scope.cancel()
            await anyio.sleep(0)
        return n + 1

    @durable
    async def job() -> int:
        return await work(await work(await work(await work(0))))

    async def use(journal: Journal) -> None:
        nonlocal scope
        with anyio.CancelScope() as scope:
            await journal.run(job, id="x")
        record = await journal.record("x")
        assert (record.state, record.owner) == ("ready", None)
        states = [one.state for one in await journal.history("x")]
        assert states == ["done"] * (point // 3) + ["intent"]
        if backend == "asyncio":
            import asyncio

            assert len(asyncio.all_tasks()) == 1
        found = await journal.resume("x", job)
        found = await journal.resume("x", job, retry=found.in_doubt)
        assert found.result == 4

    with_journal(":memory:", use, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_last", [False, True])
def test_an_execution_does_not_go_on_past_an_effect_that_it_cut_short(backend: str, is_last: bool) -> None:
    happened: list[str] = []

    @effect
    async def ship(item: str) -> str:
        happened.append("ship")
        await anyio.sleep(60)
        return item

    @effect
    async def bill(item: str) -> str:
        happened.append("bill")
        return f"bill for {item}"

    @durable
    async def order(item: str) -> str:
        found = "nothing"
        with anyio.move_on_after(0.3):
            found = await ship(item)
        return found if is_last else await bill(found)

    async def use(journal: Journal) -> None:
        found = await journal.run(order, "lamp", id="x")
        assert (found.state, found.in_doubt) == ("in doubt", ("ship",))
        assert happened == ["ship"]
        skipped = await journal.resume("x", order, skip={"ship": "a lamp"})
        assert skipped.result == ("a lamp" if is_last else "bill for a lamp")
        assert happened == (["ship"] if is_last else ["ship", "bill"])

    with_journal(":memory:", use, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_limit_that_raises_leaves_its_effect_in_doubt_too(backend: str) -> None:
    @effect
    async def ship(item: str) -> str:
        await anyio.sleep(60)
        return item

    @durable
    async def order(item: str) -> str:
        with anyio.fail_after(0.3):
            return await ship(item)

    async def use(journal: Journal) -> None:
        found = await journal.run(order, "lamp", id="x")
        assert (found.state, found.in_doubt) == ("in doubt", ("ship",))
        assert (await journal.record("x")).error == "TimeoutError: "
        assert (await journal.resume("x", order, skip={"ship": "a lamp"})).result == "a lamp"

    with_journal(":memory:", use, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_branch_begins_a_step_past_an_effect_in_doubt_and_no_limit_around_it_hides_the_doubt(backend: str) -> None:
    happened: list[str] = []

    @effect
    async def pay() -> None:
        await anyio.sleep(60)

    @effect
    async def write(n: int) -> None:
        happened.append(f"begun {n}")
        await anyio.sleep(1.5)
        happened.append(f"done {n}")

    @durable
    async def job() -> str:
        async def paying() -> None:
            with anyio.move_on_after(0.3):
                await pay()
            await write(100)

        async def writing() -> None:
            for n in range(5):
                await write(n)

        with anyio.move_on_after(0.9):
            async with anyio.create_task_group() as group:
                group.start_soon(paying)
                group.start_soon(writing)
        await write(200)
        return "done"

    async def use(journal: Journal) -> None:
        found = await journal.run(job, id="x")
        assert found.state == "in doubt"
        assert "pay" in found.in_doubt
        assert happened == ["begun 0"]

    with_journal(":memory:", use, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_effect_that_is_cancelled_from_outside_is_done_again_though_its_code_tidies_up(backend: str) -> None:
    happened: list[str] = []
    scope: anyio.CancelScope

    @effect(repeatable=True)
    async def look() -> int:
        happened.append("look")
        if len(happened) == 1:
            scope.cancel()
            await anyio.sleep(60)
        return 7

    @effect(repeatable=True)
    async def unlock() -> None:
        happened.append("unlock")

    @durable
    async def job() -> int:
        try:
            return await look()
        finally:
            await unlock()

    async def use(journal: Journal) -> None:
        nonlocal scope
        with anyio.CancelScope() as scope:
            await journal.run(job, id="x")
        assert {one.path: one.state for one in await journal.history("x")}["look"] == "intent"
        assert (await journal.resume("x", job)).result == 7

    with_journal(":memory:", use, backend)


def test_one_that_is_not_cut_short_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "_PATIENCE_S", 0.1)
    shop, has_limit = Shop(), True

    @effect(repeatable=True)
    async def look() -> int:
        if has_limit:
            await anyio.sleep(60)
        return 7

    @durable
    async def job() -> int:
        with anyio.move_on_after(0.3 if has_limit else None):
            return await look()
        await shop.ship("lamp")
        return 0

    async def use(journal: Journal) -> None:
        nonlocal has_limit
        shop.breaks = {"ship"}
        await dies(journal, job)
        has_limit = False
        with pytest.raises(ChangedError, match=r"the code cut step 'look' short after 0.\d s when it ran, and does not now"):
            await journal.resume("x", job, retry=["ship"])
        with pytest.raises(ChangedError, match="ended without asking for ship"):
            await journal.resume("x", job, retry=["look", "ship"])

    with_journal(":memory:", use)


@pytest.mark.parametrize("backend", BACKENDS)
def test_branches_that_wait_part_together_and_go_on_at_the_first_of_their_times(backend: str) -> None:
    now_s = 0.0

    @durable
    async def job() -> list[str]:
        found: list[str] = []

        async def ask(name: str, timeout_s: float | None) -> None:
            await anyio.lowlevel.checkpoint()
            try:
                found.append(f"{name} {await wait_for(name, str, timeout_s=timeout_s)}")
            except TimeoutError:
                found.append(f"{name} late")

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "a", None)
            group.start_soon(ask, "b", 60.0)
            group.start_soon(sleep, 300.0)
        return sorted(found)

    async def use(journal: Journal) -> None:
        nonlocal now_s
        found = await journal.run(job, id="x")
        assert (found.state, sorted(found.waiting_for), found.wake_at_s) == ("waiting", ["a", "b"], 60.0)
        now_s = 61.0
        assert await journal.work([job]) == 1
        found = await journal.look("x", job)
        assert (found.state, found.waiting_for, found.wake_at_s) == ("waiting", ("a",), 300.0)
        await journal.answer("x", "a", "yes")
        now_s = 301.0
        assert (await journal.resume("x", job)).result == ["a yes", "b late"]

    with_journal(":memory:", use, backend, clock=lambda: now_s)


def test_a_question_that_was_given_up_may_be_asked_again() -> None:
    now_s = 0.0

    @durable
    async def job() -> bool:
        return await wait_for("go", bool, timeout_s=10.0)

    async def use(journal: Journal) -> None:
        nonlocal now_s
        await journal.run(job, id="x")
        now_s = 11.0
        with pytest.raises(TimeoutError, match="nobody answered 'go' in time"):
            await journal.resume("x", job)
        found = await journal.resume("x", job, retry=["go"])
        assert (found.state, found.wake_at_s) == ("waiting", 21.0)
        await journal.answer("x", "go", True)
        assert (await journal.resume("x", job)).result is True

    with_journal(":memory:", use, clock=lambda: now_s)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_effect_that_may_be_repeated_and_was_cut_short_is_cut_short_again_when_it_is_replayed(backend: str) -> None:
    shop, looked = Shop(), []

    @effect(repeatable=True)
    async def look(item: str) -> str:
        looked.append(item)
        if len(looked) == 1:
            await anyio.sleep(60)
        return item

    @durable
    async def order(item: str) -> str:
        found = "nothing"
        with anyio.move_on_after(0.3):
            found = await look(item)
        return await shop.ship(found)

    shop.breaks = {"ship"}

    async def use(journal: Journal) -> None:
        await dies(journal, order, "lamp")
        shop.breaks.clear()
        assert [one.state for one in await journal.history("x")] == ["stopped", "intent"]
        found = await journal.resume("x", order, skip={"ship": "shipped"})
        assert found.result == "shipped"
        assert looked == ["lamp"]

    with_journal(":memory:", use, backend)


def test_called_directly_it_runs_in_its_own_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop()

    @durable(journal=tmp_path / "own.db")
    async def job(item: str) -> str:
        await sleep(0.01)
        return await shop.ship(item)

    assert tripod.run(job("lamp")) == "lamp shipped"
    [record] = with_journal(str(tmp_path / "own.db"), lambda journal: journal.records())
    assert (record.function, record.state) == ("job", "done")
    monkeypatch.setenv("TRIPOD_JOURNAL", str(tmp_path / "default.db"))
    assert tripod.run(shop.order("sofa")) == "sofa shipped for 4"
    [record] = with_journal(str(tmp_path / "default.db"), lambda journal: journal.records())
    assert record.function == "order"
    with pytest.raises(ConfigError, match="'order': missing a required argument: 'item'"):
        tripod.run(shop.order())


def test_outside_of_an_execution_an_effect_is_a_function() -> None:
    shop = Shop()
    assert tripod.run(shop.price("lamp")) == 4
    assert tripod.run(shop.look_up("lamp")) == 3
    with pytest.raises(ConfigError, match="wait_for was called outside of an execution"):
        tripod.run(wait_for("go", bool))
    with pytest.raises(ConfigError, match="'f' is no async function, so it cannot be durable"):

        @durable
        def f() -> None: ...


def test_what_an_effect_calls_is_a_part_of_it(location: str) -> None:
    shop = Shop()

    @effect
    async def both(item: str) -> str:
        return f"{await shop.price(item)} {await shop.ship(item)} {await Flow(len_of)(text=item)}"

    def len_of(text: str) -> int:
        return len(text)

    @durable
    async def job() -> str:
        return await both("lamp")

    async def use(journal: Journal) -> None:
        for _ in range(2):
            assert (await journal.run(job, id="x")).result == "4 lamp shipped 4"
        assert [one.path for one in await journal.history("x")] == ["both"]

    with_journal(location, use)
    with pytest.raises(ConfigError, match=r"effect 'loose' takes \*\*options: 'int'; a journal keeps arguments by name"):

        @effect
        async def loose(**options: int) -> None: ...

    with pytest.raises(ConfigError, match=r"durable 'many' takes \*items: 'int'; a journal keeps arguments by name"):

        @durable
        async def many(*items: int) -> None: ...


def test_a_worker_goes_on_with_the_others_where_one_is_refused(location: str) -> None:
    shop = Shop()

    async def changed(item: str) -> str:
        return item

    changed.__name__ = "order"

    async def use(journal: Journal) -> None:
        await journal.run(shop.order, "lamp", id="x")
        await journal.fork("x", before="price", new_id="y")
        assert await journal.work([changed]) == 1
        assert (await journal.look("y")).state == "ready"
        assert await journal.work([shop.order]) == 1
        assert (await journal.look("y")).state == "done"

    with_journal(location, use)


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="redis:// is no address of a journal"):
        tripod.run(Journal("redis://x").__aenter__())
    with pytest.raises(JournalError, match="cannot be opened as a journal"):
        tripod.run(Journal("/nowhere/at/all.db").__aenter__())
    with pytest.raises(ConfigError, match=r"is not open; use it in 'async with Journal\(\.\.\.\) as journal:'"):
        tripod.run(Journal(":memory:").records())
