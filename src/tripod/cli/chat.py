"""`tripod chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.chat.model import Model
    from tripod.messages import Message
    from tripod.sampling import SamplingParams


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, run@stepN, org/name[@revision], or http://host/v1.")],
    system: Annotated[str, typer.Option("--system", help="An instruction that stands above the conversation.")] = "",
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template", metavar="plain|FILE", help="For a model without a chat template, or instead of its own: a Jinja file."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature")] = 0.7,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 512,
) -> None:
    """Talk with a model. Ctrl-C stops a reply, Ctrl-D or /bye ends, /clear forgets the conversation."""
    import tripod
    from tripod.chat.model import Model
    from tripod.cli.terminal import note
    from tripod.errors import TripodError
    from tripod.messages import Message, assistant, user
    from tripod.sampling import SamplingParams

    _edit_lines()
    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens)
    opening = [Message("system", system)] if system else []
    history = list(opening)
    talker = Model(model, chat_template=chat_template)
    note(f"{model}: Ctrl-C stops a reply, Ctrl-D or /bye ends, /clear forgets")
    try:
        while True:
            line = _ask()
            if line is None or line == "/bye":
                return
            if line == "/clear":
                history = list(opening)
            elif line:
                history.append(user(line))
                said: list[str] = []
                try:
                    tripod.run(_reply(talker, history, sampling, said))
                except KeyboardInterrupt:
                    note("(stopped)")
                except TripodError:
                    if sys.stdin.isatty():  # a person can shorten the question or start anew; a script must see it fail
                        note(f"error: {sys.exc_info()[1]}")
                        history.pop()
                        continue
                    raise
                # A stopped reply stays in the conversation as far as it was said, so both sides remember the same.
                history.append(assistant("".join(said)))
                print()
    finally:
        tripod.run(talker.aclose())


def _edit_lines() -> None:
    """Arrow keys and history where the terminal library is there."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _ask() -> str | None:
    """A line of the person; None at the end of the input. The prompt goes to stderr: stdout holds replies only."""
    while True:
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                return input("> ").strip()  # readline shows its prompt itself
            print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            return line.strip() if line else None
        except EOFError:
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)


async def _reply(model: Model, history: list[Message], sampling: SamplingParams, said: list[str]) -> None:
    from tripod.trace import Delta

    async with aclosing(model.stream(history, sampling)) as events:
        async for event in events:
            if isinstance(event, Delta):
                said.append(event.text)
                sys.stdout.write(event.text)
                sys.stdout.flush()
