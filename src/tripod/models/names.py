"""One table a model between our names of tensors and the names in a checkpoint, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor


class TensorLayout:
    """How tensors lie in a file where that is not how a model holds them. This one: as they are."""

    __slots__ = ()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From what a file holds to the tensors of a model, under the checkpoint's names.

        Raises:
            CheckpointError: something that belongs together is not all there.
        """
        return dict(tensors)

    def scatter(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The way back."""
        return dict(tensors)


class NameTable:
    """A bijection between two ways to name the tensors of a model.

    Args:
        pairs: our name -> the checkpoint's name; `{}` stands for a layer's number, at most once in each.
        ignorable: regular expressions of names that a checkpoint may hold and the model does not use (tables that old
            versions of transformers saved, heads of other tasks), matched against the whole name.
        optional_prefix: may stand before every name of a checkpoint; never written.
        layout: of tensors in files, whose names are the checkpoint's after `gather`; None: as they are.
    """

    def __init__(
        self, pairs: Mapping[str, str], ignorable: Iterable[str] = (), optional_prefix: str = "", layout: TensorLayout | None = None
    ) -> None:
        assert len(set(pairs.values())) == len(pairs), "two of our names share one checkpoint name"
        self._theirs = dict(pairs)
        self._ours = {theirs: ours for ours, theirs in pairs.items()}
        self._ignorable = [re.compile(pattern) for pattern in ignorable]
        self._optional_prefix = optional_prefix
        self.layout = layout or TensorLayout()

    def to_checkpoint(self, name: str) -> str:
        """The checkpoint's name of one of our tensors."""
        return _translate(name, self._theirs)

    def from_checkpoint(self, name: str) -> str | None:
        """Our name of one of the checkpoint's tensors; None where the model has no such tensor."""
        try:
            return _translate(name.removeprefix(self._optional_prefix), self._ours)
        except KeyError:
            return None

    def is_ignorable(self, name: str) -> bool:
        """Whether a checkpoint's tensor is known and not used."""
        return any(pattern.fullmatch(name.removeprefix(self._optional_prefix)) for pattern in self._ignorable)


def _translate(name: str, table: Mapping[str, str]) -> str:
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    if number is None:
        return table[name]
    return table[f"{name[: number.start()]}{{}}{name[number.end() :]}"].format(number.group())
