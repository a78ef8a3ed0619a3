"""The one check that operations make of their arguments."""

from __future__ import annotations

from torch import Tensor

from tripod.errors import ShapeError


def expect_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise ShapeError unless `tensor` has exactly `shape`; None stands for any size."""
    if len(shape) != tensor.ndim or any(want is not None and want != size for want, size in zip(shape, tensor.shape, strict=True)):
        expected = ", ".join("*" if size is None else str(size) for size in shape)
        raise ShapeError(f"{name} has shape {list(tensor.shape)}; expected [{expected}]")
