"""The one way to open a tokenizer: by the folder that it lies in."""

from __future__ import annotations

from pathlib import Path

from tripod.errors import MissingExtraError, TokenizerError
from tripod.text.tokenizer import Tokenizer


def load_tokenizer(folder: Path, *, chat_template: Path | None = None) -> Tokenizer:
    """Open the tokenizer that lies beside a model.

    Looks for `tokenizer.json` (Hugging Face), then `tokenizer.model` or `spiece.model` (SentencePiece), then `tok*.bin` (llama2.c).
    Special tokens and the chat template come from `tokenizer_config.json`, `generation_config.json`, `config.json` and
    `chat_template.jinja`, where they are present.

    Args:
        folder: a model's folder.
        chat_template: a Jinja file to use instead of the template that the folder holds.

    Raises:
        TokenizerError: no tokenizer is there, or its files cannot be read.
        MissingExtraError: the package that reads this kind of tokenizer is not installed.
    """
    if not folder.is_dir():
        raise TokenizerError(f"no tokenizer can be read from {folder}: it is not a folder; give the folder that holds the model's files")
    json_file = folder / "tokenizer.json"
    if json_file.is_file():
        try:
            from tripod.text.hf_tokenizer import HfTokenizer
        except ModuleNotFoundError as error:
            raise MissingExtraError("tokenizers", "engine", f"reading {json_file}") from error
        return HfTokenizer.load(json_file, chat_template=chat_template)
    for model_file in (folder / "tokenizer.model", folder / "spiece.model"):
        if model_file.is_file():
            try:
                from tripod.text.sentencepiece_tokenizer import SentencePieceTokenizer
            except ModuleNotFoundError as error:
                raise MissingExtraError("sentencepiece", "engine", f"reading {model_file}") from error
            return SentencePieceTokenizer.load(model_file, chat_template=chat_template)
    bin_files = sorted(folder.glob("tok*.bin"))
    if len(bin_files) > 1:
        names = ", ".join(file.name for file in bin_files)
        raise TokenizerError(f"{folder} holds several llama2.c tokenizers ({names}); leave the one that belongs to the model")
    if bin_files:
        from tripod.text.llama2c_tokenizer import Llama2cTokenizer

        return Llama2cTokenizer.load(bin_files[0], chat_template=chat_template)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:20]) or "nothing"
    raise TokenizerError(
        f"{folder} holds no tokenizer: expected tokenizer.json, tokenizer.model, spiece.model or tok*.bin, found {found}; "
        "copy the tokenizer's files beside the model (transformers writes tokenizer.json with `tokenizer.save_pretrained(folder)`)"
    )
