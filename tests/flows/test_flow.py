"""A flow is wired by names and types, checked before it runs, and runs the same whatever the order in which it was written."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tripod
from tripod.errors import ConfigError, FlowError
from tripod.flows.flow import Flow, Item
from tripod.flows.step import branch, each, loop, step
from tripod.trace import recording

T = TypeVar("T")
BACKENDS = ["asyncio", "trio"]


@dataclass(frozen=True)
class Text:
    body: str


@dataclass(frozen=True)
class Word:
    letters: str


@dataclass(frozen=True)
class Count:
    number: int


def load(path: str) -> Text:
    return Text(f"{path} holds some words")


def split(text: Text) -> list[Word]:
    return [Word(letters) for letters in text.body.split()]


def count(words: list[Word]) -> Count:
    return Count(len(words))


def on(backend: str, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return anyio.run(function, backend=backend)


def test_three_functions_are_a_flow_in_whatever_order_they_are_given() -> None:
    flow = Flow(count, load, split)
    assert [one.name for one in flow.steps] == ["load", "split", "count"]
    assert flow.run(path="a.txt") == Count(4)
    assert tripod.run(flow(path="a.txt")) == Count(4)
    assert repr(flow) == "flow(path: str) -> Count: load -> split -> count"


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(7)), st.sampled_from([1, 3]))
def test_the_order_of_effects_does_not_depend_on_the_order_of_insertion(order: list[int], max_concurrency: int) -> None:
    effects: list[str] = []

    def writing(name: str, *takes: str) -> Any:
        async def write(**given: int) -> int:
            effects.append(name)
            await anyio.sleep(0)
            effects.append(f"{name} ends")
            return sum(given.values(), start=1)

        source = f"async def {name}({', '.join(f'{one}: int' for one in takes)}) -> int:\n    return await write(**locals())"
        space: dict[str, Any] = {"write": write}
        exec(source, space)
        return space[name]

    steps = [
        writing("a", "x"),
        writing("b", "x"),
        writing("c", "a"),
        writing("d", "a", "b"),
        writing("e", "b"),
        writing("f", "c", "d"),
        writing("g", "f", "e"),
    ]
    seen = []
    for backend in BACKENDS:
        effects.clear()
        flow = Flow(*(steps[number] for number in order), max_concurrency=max_concurrency)
        seen.append((on(backend, lambda flow=flow: flow(x=1)), [one for one in effects if "ends" not in one]))  # type: ignore[misc]
    # a = b = 2, c = 3, d = 5, e = 3, f = 9, g = 13; by hand. Of the steps that wait for nothing, the first by name is next.
    serial = ["a", "b", "c", "d", "e", "f", "g"]
    assert seen == [(13, serial), (13, serial)]


def test_what_is_missing_is_named_with_the_step_that_needs_it() -> None:
    with pytest.raises(ConfigError, match=r"is not given 'words' \(list\[Word\]\) of step 'count'; no step returns list\[Word\]"):
        Flow(count).run()
    with pytest.raises(ConfigError, match=r"step 'count': its input 'words' \(list\[Word\]\) is missing"):
        Flow(count, inputs={"path": str})
    with pytest.raises(ConfigError, match="step 'split' takes 'text' from 'laod', which is not there; there are: load, split, path"):
        Flow(load, step(split, text="laod"), inputs={"path": str})
    with pytest.raises(ConfigError, match="declares the input 'folder', which no step takes"):
        Flow(load, inputs={"path": str, "folder": str})
    with pytest.raises(ConfigError, match="has no input 'paht'; it takes path"):
        Flow(load).run(paht="a")
    with pytest.raises(ConfigError, match="input 'path' is str, and 3 is a int"):
        Flow(load).run(path=3)


def test_what_two_steps_could_give_is_ambiguous_until_it_is_wired() -> None:
    def fetch(url: str) -> Text:
        return Text(url)

    with pytest.raises(ConfigError, match=r"step 'split': its input 'text' \(Text\) is ambiguous, since fetch and load return it"):
        Flow(load, fetch, split, count)
    flow = Flow(load, fetch, step(split, text=fetch), count, returns="count")
    assert flow.run(path="a", url="b c d") == Count(3)


def test_a_value_of_another_type_is_refused_when_it_is_wired() -> None:
    with pytest.raises(ConfigError, match=r"step 'count': its input 'words' is list\[Word\], but 'load' returns Text"):
        Flow(load, step(count, words=load))

    def size(path: int) -> Count:
        return Count(path)

    with pytest.raises(ConfigError, match="input 'path' is int for step 'size' and str for step 'load'"):
        Flow(load, size, returns="size")


def test_a_parameter_takes_the_step_of_its_name() -> None:
    def title(path: str) -> str:
        return path.upper()

    def line(title: str, width: int = 5) -> str:
        return title[:width]

    assert Flow(line, title).run(path="abcdefgh") == "ABCDE"
    assert Flow(line, title).run(path="abcdefgh", width=2) == "AB"


def test_a_circle_without_a_bound_is_refused() -> None:
    def there(count: Count) -> Word:
        return Word("x" * count.number)

    def back(word: Word) -> Count:
        return Count(len(word.letters) + 1)

    with pytest.raises(ConfigError, match=r"goes in a circle without a bound \(each needs the next: back -> there -> back\).*at_most"):
        Flow(there, back)


@dataclass(frozen=True)
class Easy:
    question: str


@dataclass(frozen=True)
class Hard:
    question: str


def route(question: str) -> Easy | Hard:
    return Easy(question) if len(question) < 10 else Hard(question)


def quick(easy: Easy) -> Text:
    return Text(f"quick {easy.question}")


def deep(hard: Hard) -> Text:
    return Text(f"deep {hard.question}")


def shout(text: Text) -> str:
    return text.body.upper()


def test_a_union_is_a_branch_and_what_follows_both_is_a_join() -> None:
    flow = Flow(shout, deep, quick, route)
    assert flow.run(question="2+2?") == "QUICK 2+2?"
    assert flow.run(question="Why is there something?") == "DEEP WHY IS THERE SOMETHING?"
    with recording() as spans:
        flow.run(question="2+2?")
    assert [one.name for one in spans[0].children] == ["route", "quick", "shout"]  # deep did not run
    with pytest.raises(ConfigError, match="'route' may return Hard, which no step takes"):
        Flow(route, quick, shout)


def test_nothing_runs_after_a_step_that_found_nothing() -> None:
    def find(word: str) -> Word | None:
        return Word(word) if word == "here" else None

    def spell(found: Word) -> str:
        return "-".join(found.letters)

    flow = Flow(spell, find)
    assert (flow.run(word="here"), flow.run(word="away")) == ("h-e-r-e", None)
    assert flow.returns == str | None


def test_a_condition_chooses_one_of_two_steps_for_the_same_input() -> None:
    def is_long(text: Text) -> bool:
        return len(text.body) > 10

    def cut(text: Text, width: int) -> str:
        return text.body[:width]

    def keep(text: Text) -> str:
        return text.body

    flow = Flow(load, branch(is_long, then=cut, otherwise=keep))
    assert tripod.run(flow(path="abc", width=3)) == "abc"
    assert [one.name for one in flow.steps] == ["load", "is_long"]


def test_a_loop_ends_when_it_is_content_and_fails_at_its_bound() -> None:
    def halve(number: int) -> int:
        return number // 2

    small = loop(halve, until=lambda number: number < 10, at_most=4)
    assert tripod.run(Flow(small)(number=100)) == 6  # 50, 25, 12, 6
    with pytest.raises(FlowError, match="loop 'halve' is not done after at_most=4 calls"):
        tripod.run(Flow(small)(number=1000))
    with pytest.raises(ConfigError, match="at_most=0"):
        loop(halve, until=bool, at_most=0)
    with pytest.raises(ConfigError, match="over='nmber': 'halve' has no such parameter; it takes number"):
        loop(halve, until=bool, at_most=1, over="nmber")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_is_mapped_in_order_with_a_bound(backend: str) -> None:
    flying = most = 0

    async def weigh(word: Word, factor: int) -> Count:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await anyio.sleep(0.001 * (5 - len(word.letters)))  # the first end last
        flying -= 1
        return Count(len(word.letters) * factor)

    def total(counts: list[Count]) -> int:
        return sum(one.number for one in counts)

    def words(text: str) -> list[Word]:
        return [Word(one) for one in text.split()]

    flow = Flow(total, each(weigh, limit=3), words)
    assert on(backend, lambda: flow(text="a bb ccc dddd a bb", factor=10)) == 130
    assert most == 3
    mapped = Flow(each(weigh, limit=3))
    found = on(backend, lambda: mapped(word=[Word("a"), Word("bbbb"), Word("cc")], factor=1))
    assert found == [Count(1), Count(4), Count(2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_flows_through_without_being_collected(backend: str) -> None:
    log: list[str] = []

    async def numbers(upto: int) -> AsyncIterator[Count]:
        for number in range(upto):
            log.append(f"made {number}")
            yield Count(number)

    async def doubled(numbers: AsyncIterator[Count]) -> AsyncIterator[Count]:
        async for one in numbers:
            log.append(f"took {one.number}")
            yield Count(one.number * 2)

    flow = Flow(doubled, numbers)

    async def streamed() -> list[Any]:
        return [item async for item in flow.stream(upto=2)]

    items = on(backend, streamed)
    assert items == [Item("doubled", Count(0)), Item("doubled", Count(2)), Item("doubled", [Count(0), Count(2)], is_result=True)]
    assert log == ["made 0", "took 0", "made 1", "took 1"]
    assert on(backend, lambda: flow(upto=3)) == [Count(0), Count(2), Count(4)]

    def total(numbers: list[Count]) -> int:  # a list is taken where a stream is made
        return sum(one.number for one in numbers)

    assert on(backend, lambda: Flow(total, numbers)(upto=4)) == 6


def test_a_stream_that_is_left_is_closed() -> None:
    closed: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append("endless")

    for _ in tripod.iterate(Flow(endless).stream()):
        break
    assert closed == ["endless"]


def test_it_stops_before_a_step_and_goes_on_with_what_was_changed() -> None:
    flow = Flow(load, split, count)

    async def debug() -> tuple[Any, ...]:
        async with flow.until("split", "count", path="a.txt") as paused:
            first = paused.before, paused.values
            assert await paused.resume(load=Text("two words")) is None
            return *first, paused.before, await paused.resume()

    with recording() as spans:
        assert anyio.run(debug) == ("split", {"path": "a.txt", "load": Text("a.txt holds some words")}, "count", Count(2))
    assert [span.name for span in spans[0].walk()] == ["flow", "load", "split", "count"]
    with pytest.raises(ConfigError, match="no step of flow 'flow' is named 'spilt'"):
        tripod.run(flow.until("spilt", path="a").__aenter__())


def test_a_flow_is_a_step_of_another() -> None:
    inner = Flow(load, split, name="words")

    def longest(words: list[Word]) -> Word:
        return max(words, key=lambda word: len(word.letters))

    with recording() as spans:
        assert tripod.run(Flow(longest, inner, name="outer")(path="somewhere")) == Word("somewhere")
    assert [one.name for one in spans[0].walk()] == ["outer", "words", "load", "split", "longest"]


def test_a_step_that_breaks_its_promise_is_named() -> None:
    def broken(path: str) -> Text:
        return path  # type: ignore[return-value]

    with pytest.raises(FlowError, match="step 'broken' of flow 'flow' promises Text and returned str"):
        Flow(broken).run(path="a")


def test_a_function_whose_inputs_are_not_known_is_refused() -> None:
    def loose(*texts: str) -> str:
        return "".join(texts)

    def by_place(text: str, /) -> str:
        return text

    for function, why in ((loose, r"takes \*texts: 'str'; a flow must know"), (by_place, "by position only"), (dict, "tells no signature")):
        with pytest.raises(ConfigError, match=why):
            Flow(function)
    with pytest.raises(ConfigError, match="3 is no function"):
        Flow(3)  # type: ignore[arg-type]


def test_arguments_go_by_name_where_the_places_of_a_signature_are_not_those_of_the_edges() -> None:
    def mixed(a: int, idempotency_key: str = "", *, b: int, c: int = 7) -> list[object]:
        return [a, idempotency_key, b, c]

    assert Flow(mixed).run(a=1, b=2) == [1, "", 2, 7]


def test_an_error_rises_as_itself_and_says_where() -> None:
    async def fail(word: Word) -> Count:
        raise KeyError(word.letters)

    with pytest.raises(KeyError) as caught:
        tripod.run(Flow(load, split, each(fail, limit=2), returns="fail", max_concurrency=2)(path="a"))
    assert caught.value.__notes__ == ["in step 'fail' of flow 'flow'"]


def test_every_step_is_a_span_below_that_of_the_flow() -> None:
    def careful(text: Text) -> Count:
        with tripod.trace.span("inner", note=text.body):
            return Count(1)

    with recording() as spans:
        Flow(load, careful, name="traced").run(path="a")
    [flow] = spans
    assert [one.name for one in flow.walk()] == ["traced", "load", "careful", "inner"]
    assert flow.children[1].children[0].attributes == {"note": "a holds some words"}
    assert flow.duration_s >= sum(one.duration_s for one in flow.children)


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_that_do_not_wait_for_each_other_run_at_the_same_time_where_that_is_allowed(backend: str) -> None:
    async def run(max_concurrency: int) -> list[str]:
        log: list[str] = []

        async def left(x: int) -> Text:
            log.append("left begins")
            await anyio.sleep(0.01)
            log.append("left ends")
            return Text("l")

        async def right(x: int) -> Word:
            log.append("right begins")
            await anyio.sleep(0.001)
            log.append("right ends")
            return Word("r")

        def both(text: Text, word: Word) -> str:
            return text.body + word.letters

        assert await Flow(both, right, left, max_concurrency=max_concurrency)(x=1) == "lr"
        return log

    assert on(backend, lambda: run(1)) == ["left begins", "left ends", "right begins", "right ends"]
    assert on(backend, lambda: run(2)) == ["left begins", "right begins", "right ends", "left ends"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.sampled_from(BACKENDS), st.sampled_from([1, 4]))
def test_a_flow_that_is_cancelled_at_any_point_leaves_nothing(point: int, backend: str, max_concurrency: int) -> None:
    """At the n-th await of its steps: everything that was entered is left, and no task goes on."""
    entered: list[int] = []
    awaits = 0

    async def main() -> None:
        scope = anyio.CancelScope()

        async def pause() -> None:
            nonlocal awaits
            awaits += 1
            if awaits > point:
                scope.cancel()
            await anyio.sleep(0)

        async def make(upto: int) -> AsyncIterator[Word]:
            entered.append(1)
            try:
                for _ in range(upto):
                    await pause()
                    yield Word("w")
            finally:
                entered.pop()

        async def weigh(word: Word) -> Count:
            entered.append(1)
            try:
                await pause()
                return Count(1)
            finally:
                entered.pop()

        async def other(upto: int) -> Text:
            await pause()
            await pause()
            return Text("t")

        def collect(words: list[Word]) -> list[Word]:
            return words

        def end(counts: list[Count], text: Text) -> int:
            return len(counts)

        flow = Flow(make, step(collect, words=make), step(each(weigh, limit=3), word=collect), other, end, max_concurrency=max_concurrency)
        with scope:
            assert await flow(upto=6) == 6
        before = awaits
        await anyio.sleep(0.002)
        assert awaits == before
        if backend == "asyncio":
            import asyncio

            assert len(asyncio.all_tasks()) == 1

    on(backend, main)
    assert entered == []


def test_a_flow_of_plain_functions_needs_no_loop_and_says_so_when_it_does() -> None:
    class Soon:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def late(path: str) -> Text:
        await Soon()
        return Text(path)

    assert Flow(late, split, count).run(path="a b") == Count(2)  # over the bridge
    with pytest.raises(FlowError, match="make it 'async def'"):
        Flow(step(lambda path: late(path), name="sly")).run(path="a")


def test_a_frame_or_two_stand_between_the_caller_and_a_step() -> None:
    depths: list[int] = []

    def deep_in(path: str) -> int:
        frame, depth = sys._getframe(), 0
        while frame.f_back is not None and frame.f_back.f_code.co_name != test_a_frame_or_two_stand_between_the_caller_and_a_step.__name__:
            frame, depth = frame.f_back, depth + 1
        depths.append(depth)
        return depth

    Flow(deep_in).run(path="a")
    assert depths[0] <= 6
