"""What the rest of Tripod knows of a tokenizer, and the one way to open it: `load_tokenizer(folder)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tripod.errors import ConfigError, MissingExtraError, TokenizerError
from tripod.text.chat_template import ChatTemplate


class Tokenizer(Protocol):
    """Text to token ids and back.

    The truth of decoding is `token_bytes`: a text is the bytes of its tokens, joined, read as UTF-8 with one U+FFFD for
    each maximal invalid stretch (the practice that Unicode recommends). Only the opening of a text may differ, because
    SentencePiece puts a space before a text and takes it off again; `opening_bytes` knows that.
    """

    @property
    def vocab_size(self) -> int: ...  # the largest token id + 1; an embedding may have more rows than this

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...  # any of them ends a generation

    @property
    def special_ids(self) -> frozenset[int]: ...  # tokens that mark structure; decoding skips them unless told otherwise

    @property
    def chat_template(self) -> ChatTemplate | None: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...  # what the token adds to a running text; nothing for an id without a token

    def opening_bytes(self, token_id: int) -> tuple[bytes, bool]: ...  # what it gives at the opening of a text; whether that is then over

    def token_text(self, token_id: int) -> str: ...  # `token_bytes` to look at: not every token is whole characters


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


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer that can produce ids for which the model has no embedding.

    Args:
        tokenizer: the tokenizer beside a model.
        vocab_size: rows of the model's embedding. More rows than tokens are common (padding) and fine.

    Raises:
        TokenizerError: the tokenizer has more ids than the embedding has rows.
    """
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} token ids, the model's embedding only {vocab_size} rows; "
            "they do not belong together: use the tokenizer that the model was trained with"
        )


def require_chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The tokenizer's chat template.

    Raises:
        ConfigError: it has none; the message says how to give one.
    """
    if tokenizer.chat_template is None:
        raise ConfigError(
            "this model has no chat template, so messages cannot be turned into its prompt; "
            "pass one with --chat-template FILE (Jinja, Hugging Face conventions), or send a plain prompt to completions"
        )
    return tokenizer.chat_template
