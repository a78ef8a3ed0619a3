"""From the files of a checkpoint to a model with every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tripod.errors import CheckpointError, ConfigError
from tripod.models.architectures import ENCODERS, LANGUAGE_MODELS, Architecture, Decoder, Model, architecture_of
from tripod.models.bert import Bert
from tripod.models.checkpoint import read_config, read_tensors
from tripod.models.llama import Llama
from tripod.models.llama2c import llama2c_config, load_llama2c
from tripod.models.names import NameTable

MAX_NAMED = 12  # names listed in an error before "and N more"


def load_language_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    keeps_linear_mapped: bool = False,
) -> Decoder:
    """Load a checkpoint in the Hugging Face layout, or a single llama2.c file, for inference: no tensor asks for gradients.

    Args:
        folder: holds config.json and weights; or the path of a llama2.c `.bin`. `locate` finds it from an address.
        dtype: of the weights and so of the computation, whatever the checkpoint's own; None: each tensor keeps its own.
        device: where the weights go.
        keeps_linear_mapped: the matrices of linear layers stay in the mapped files as they are, for a caller that packs them at once.

    Raises:
        CheckpointError: a file is absent, broken or of an unknown architecture, or tensors are missing, unexpected or of another shape.
        ConfigError: config.json asks for something that is not supported.
    """
    if folder.is_file():
        return load_llama2c(folder, dtype=dtype or torch.float32).to(device)
    return cast("Decoder", _load(folder, LANGUAGE_MODELS, dtype, device, keeps_linear_mapped=keeps_linear_mapped))


def load_encoder(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Bert:
    """Load an encoder; arguments and errors as for `load_language_model`."""
    return cast("Bert", _load(folder, ENCODERS, dtype, device))


def empty_language_model(folder: Path) -> Decoder:
    """A model without weights, on torch's meta device: its shapes are known from config.json, and no memory is taken.

    Args:
        folder: holds config.json; or the path of a llama2.c `.bin`.

    Raises:
        CheckpointError: config.json is absent, broken or of an unknown architecture.
        ConfigError: it asks for something that is not supported.
    """
    if folder.is_file():
        with torch.device("meta"), _WithoutInitialising():
            return Llama(llama2c_config(folder))
    return cast("Decoder", _empty(folder, LANGUAGE_MODELS)[1])


def load_cross_encoder(folder: Path, *, dtype: torch.dtype | None = None) -> tuple[Bert, nn.Linear, nn.Linear]:
    """A BERT with the two layers of its head, which are float32: the pooler of the first token's state, and the classifier.

    Raises:
        CheckpointError: the folder holds no such model, or tensors that do not fit its config.json.
    """
    architecture, model = _empty(folder, ENCODERS)
    assert isinstance(model, Bert)
    tensors = read_tensors(folder)
    layers = []
    for name in ("bert.pooler.dense", "classifier"):
        weight, bias = tensors.pop(f"{name}.weight", None), tensors.pop(f"{name}.bias", None)
        if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != model.config.hidden_size:
            raise CheckpointError(f"{folder} has no {name} of {model.config.hidden_size} inputs; expected a BertForSequenceClassification")
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.load_state_dict({"weight": weight.float().clone(), "bias": bias.float().clone()}, assign=True)
        layers.append(layer.eval().requires_grad_(False))
    found = match_tensors(model, tensors, architecture.names, source=folder)
    model.load_state_dict({name: tensor.to(dtype=dtype, copy=True) for name, tensor in found.items()}, assign=True)
    return model.eval().requires_grad_(False), layers[0], layers[1]


class _WithoutInitialising(TorchFunctionMode):
    """Leaves tensors as they are where a module would fill them: on the meta device that loads torch's compiler, for a second or more."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _empty(folder: Path, supported: tuple[str, ...]) -> tuple[Architecture, Model]:
    config = read_config(folder)
    if "quantization_config" in config:
        raise CheckpointError(f"{folder} is a quantized checkpoint ({config['quantization_config']!r:.120}); use the one it was made from")
    try:
        architecture = architecture_of(config, supported)
        with torch.device("meta"), _WithoutInitialising():
            return architecture, architecture.build(architecture.read_config(config))
    except ConfigError as error:  # which of several checkpoints it was
        raise type(error)(f"{folder}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: config.json holds a value that no such model has ({type(error).__name__}: {error}); get the file again"
        ) from error


def _load(
    folder: Path,
    supported: tuple[str, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
    *,
    keeps_linear_mapped: bool = False,
) -> Model:
    architecture, model = _empty(folder, supported)
    tensors = match_tensors(model, read_tensors(folder), architecture.names, source=folder)
    mapped = _linear_weights(model) if keeps_linear_mapped else set()
    # Copied once out of the mapped files: aligned, and safe when someone replaces a file under a running model.
    copied = {name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in tensors.items() if name not in mapped}
    model.load_state_dict(copied | {name: tensors[name] for name in mapped}, assign=True)
    return model.eval().requires_grad_(False)


def _linear_weights(model: Model) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def match_tensors(model: Model, tensors: dict[str, Tensor], names: NameTable, *, source: Path) -> dict[str, Tensor]:
    """Give the tensors of a checkpoint our names and layout, and account for every one of them.

    Raises:
        CheckpointError: naming all that are missing, unexpected or wrongly shaped, at once.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    tensors = names.layout.gather(tensors)
    for theirs, tensor in tensors.items():
        ours = names.from_checkpoint(theirs)
        if ours in expected:
            found[ours] = tensor
        elif not names.is_ignorable(theirs) and not (ours == "head.weight" and _is_tied_copy(tensor, tensors, names)):
            unexpected.append(theirs)
    missing = [names.to_checkpoint(ours) for ours in expected if ours not in found]
    misshapen = [
        f"{names.to_checkpoint(ours)} is {list(tensor.shape)}, expected {list(expected[ours])}"
        for ours, tensor in found.items()
        if tuple(tensor.shape) != expected[ours]
    ]
    complaints = [
        f"{kind}: {_listed(entries)}"
        for kind, entries in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen))
        if entries
    ]
    if complaints:
        raise CheckpointError(f"the tensors of {source} do not fit its config.json; " + "; ".join(complaints))
    return found


def _is_tied_copy(head: Tensor, tensors: dict[str, Tensor], names: NameTable) -> bool:
    """Whether an output matrix that a tied model does not have merely repeats the embedding, as pickled checkpoints do."""
    embedding = tensors.get(names.to_checkpoint("embedding.weight"))
    return embedding is not None and torch.equal(head, embedding)


def _listed(entries: list[str]) -> str:
    more = f" and {len(entries) - MAX_NAMED} more" if len(entries) > MAX_NAMED else ""
    return ", ".join(entries[:MAX_NAMED]) + more
