"""`tripod prompt`: look at a prompt before anyone pays for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tripod.prompts import Prompt
    from tripod.text.tokenizer import Tokenizer

prompt = typer.Typer(help="Look at a prompt before anyone pays for it.", no_args_is_help=True)


@prompt.callback()
def options() -> None:
    """So that `show` is a command of its own, though it is the only one."""


@prompt.command()
def show(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE|MODULE:FUNCTION", help="A file of roles and Jinja templates, or a function that returns a Prompt."),
    ],
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="What the prompt is made of; may be given several times.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Count its tokens: a folder, run@stepN or org/name[@revision].")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", metavar="plain|FILE", help="Instead of the model's own: 'plain', or a Jinja file.")
    ] = None,
    with_tokens: Annotated[bool, typer.Option("--tokens", help="Print the tokens too, one between each two bars.")] = False,
    price: Annotated[float | None, typer.Option("--price", min=0.0, help="What a million tokens of a prompt cost.")] = None,
) -> None:
    """Print the text of a prompt and, with --model, how many tokens it has and what they cost."""
    from tripod.cli.terminal import stdout
    from tripod.errors import ConfigError

    if model is None and (with_tokens or price is not None):
        raise ConfigError("tokens are those of a model; name it with --model")
    made = _made(source, dict(_pair(value) for value in values or ()))
    console = stdout()
    console.print(str(made), markup=False, highlight=False, soft_wrap=True)
    if model is None:
        return
    from tripod.chat.asked import ask_engine
    from tripod.chat.render import PLAIN, template_file
    from tripod.sampling import SamplingParams

    tokenizer = _tokenizer(model, template_file(chat_template))
    ids = ask_engine(made, SamplingParams(), tokenizer, chat_template=PLAIN if chat_template == PLAIN else None).ids
    if with_tokens:
        console.print("\n|" + "|".join(map(tokenizer.token_text, ids)) + "|", markup=False, highlight=False, soft_wrap=True)
    cost = f", {len(ids) * price / 1e6:.6f} at {price:g} for a million" if price is not None else ""
    console.print(f"\n{len(ids)} tokens{cost}", markup=False, highlight=False)


def _pair(value: str) -> tuple[str, str]:
    from tripod.errors import ConfigError

    name, equals, text = value.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--set {value} is not NAME=VALUE, such as question='How are blocks freed?'")
    return name, text


def _made(source: str, values: dict[str, str]) -> Prompt:
    from pathlib import Path

    from tripod.errors import ConfigError
    from tripod.prompts import Prompt

    if Path(source).is_file():
        from tripod.chat.prompt_file import prompt_from_file

        return prompt_from_file(source, **values)
    from tripod.cli.imported import imported

    function: Any = imported(source)
    try:
        made = function(**values)
    except TypeError as error:
        raise ConfigError(f"{source} cannot be called so: {error}; give its arguments with --set NAME=VALUE") from error
    if not isinstance(made, Prompt):
        raise ConfigError(f"{source} returned a {type(made).__name__}, not a Prompt")
    return made


def _tokenizer(model: str, template: Any) -> Tokenizer:
    from tripod.models.locate import locate
    from tripod.text.load_tokenizer import load_tokenizer

    path = locate(model)
    return load_tokenizer(path if path.is_dir() else path.parent, chat_template=template)
