"""`tripod checkpoint`: checkpoints of others brought in, ours taken out."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.models.architectures import Decoder

checkpoint = typer.Typer(help="Bring checkpoints in and take them out: Hugging Face and GPT-NeoX formats.", no_args_is_help=True)


class Format(StrEnum):
    """Of an exported checkpoint."""

    HF = "hf"
    NEOX = "neox"


class Dtype(StrEnum):
    """Of exported weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@checkpoint.command("import")
def import_command(
    source: Annotated[
        str, typer.Argument(help="A folder of GPT-NeoX (global_stepN), or any model: a folder, run@stepN, org/name@revision.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Gets config.json and model.safetensors.")],
    configs: Annotated[
        list[Path] | None, typer.Option("--config", metavar="FILE", help="Of a GPT-NeoX run whose checkpoint has no configs/.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="To put beside it; else the source's own.")
    ] = None,
) -> None:
    """Read a checkpoint, account for every tensor, and write it in the layout that Tripod, transformers and vLLM open."""
    from tripod.models.save import save_checkpoint
    from tripod.training.neox_checkpoint import is_neox_checkpoint, read_neox_checkpoint

    folder = Path(source)
    if is_neox_checkpoint(folder):
        model: Decoder = read_neox_checkpoint(folder, configs=configs or ())
    else:
        model, folder = _load(source)
    _refuse_occupied(out)
    save_checkpoint(model, out)
    _copy_tokenizer(tokenizer or folder, out)
    _tell(out, model)


@checkpoint.command("export")
def export_command(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="run@stepN, a folder, or org/name@revision.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER")],
    form: Annotated[Format, typer.Option("--format", help="hf: one safetensors file; neox: global_stepN with a file a layer.")] = Format.HF,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Of the weights; as they are stored.")] = None,
    parts: Annotated[int, typer.Option("--parts", min=1, help="With neox: model-parallel parts.")] = 1,
    step: Annotated[int | None, typer.Option("--step", help="With neox: the N of global_stepN; else the checkpoint's, or 0.")] = None,
) -> None:
    """Write the weights of a checkpoint for others, without optimizer state, with its tokenizer."""
    import torch

    from tripod.errors import ConfigError
    from tripod.models.gpt_neox import GPTNeoX
    from tripod.models.save import save_checkpoint
    from tripod.training.neox_checkpoint import write_neox_checkpoint

    model, folder = _load(source)
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    if form is Format.HF:
        _refuse_occupied(out)
        save_checkpoint(model, out)
        _copy_tokenizer(folder, out)
        _tell(out, model)
        return
    if not isinstance(model, GPTNeoX):
        raise ConfigError(f"{source} is a {type(model).__name__}; only GPT-NeoX models are written in GPT-NeoX's format")
    number = folder.name.removeprefix("step")
    target = write_neox_checkpoint(model, out, step=step if step is not None else int(number) if number.isdecimal() else 0, num_parts=parts)
    _tell(target, model)


def _load(source: str) -> tuple[Decoder, Path]:
    from tripod.models.load import load_language_model
    from tripod.models.locate import locate

    folder = locate(source)
    return load_language_model(folder, dtype=None), folder


def _refuse_occupied(out: Path) -> None:
    from tripod.errors import ConfigError

    if (out / "config.json").exists() or (out / "model.safetensors").exists():
        raise ConfigError(f"{out} holds a checkpoint; name another folder")


def _copy_tokenizer(folder: Path, out: Path) -> None:
    from tripod.cli.terminal import note
    from tripod.training.checkpoint import TOKENIZER_FILES

    files = sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)})
    for file in files:
        shutil.copyfile(file, out / file.name)
    if not any(file.name in ("tokenizer.json", "tokenizer.model", "spiece.model") for file in files):
        note(f"{folder} has no tokenizer; put one beside the weights (--tokenizer FOLDER), or it can only be given token ids")


def _tell(out: Path, model: Decoder) -> None:
    from tripod.cli.terminal import stdout

    num_parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    stdout().print(f"{out}: {type(model).__name__}, {num_parameters:,} parameters, {str(model.dtype).removeprefix('torch.')}", markup=False)
