"""GPT-NeoX's own checkpoints: `global_stepN`, a file a layer and model-parallel part, read and written.

    layer_00-model_00-model_states.pt      the embedding; model_01, ...: the other parts
    layer_02-..., layer_03-..., ...        the layers; 01 holds nothing
    layer_{L+3}-..., layer_{L+4}-...       the last norm and the output matrix of L layers
    mp_rank_00_model_states.pt             iteration and arguments
    configs/*.yml                          the configuration

Parts are merged as they are computed: matrices that read the residual stream, and the embeddings, are cut by rows; those that write into
it by columns; their biases are added up, because each part adds its own; norms are the mean of their copies. Optimizer states are not
read: their files belong to the number of processes that wrote them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tripod.durable_files import durable_file, durable_folder, write_flushed
from tripod.errors import CheckpointError, ConfigError, MissingExtraError
from tripod.models.gpt_neox import NAMES, GPTNeoX, GPTNeoXConfig
from tripod.models.load import match_tensors
from tripod.training.neox_config import merge_neox, neox_model

_LAYER_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_LATEST = "latest"
_IGNORABLE = re.compile(r"attention\.(rotary_emb\.inv_freq|bias|masked_bias)")
_OF_LAYER = {  # theirs, in a layer's file: ours
    "input_layernorm": "attention_norm",
    "attention.query_key_value": "attention.query_key_value",
    "attention.dense": "attention.output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.dense_h_to_4h": "mlp.up",
    "mlp.dense_4h_to_h": "mlp.down",
}
_BY_COLUMNS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
_ADDED = ("attention.dense.bias", "mlp.dense_4h_to_h.bias")


def merge_parts(name: str, parts: Sequence[Tensor]) -> Tensor:
    """One tensor out of its model-parallel parts, by its name in a layer's file. The dtype stays."""
    if len(parts) == 1:
        return parts[0]
    if name.endswith(_BY_COLUMNS):
        return torch.cat(tuple(parts), 1)
    if name.endswith(_ADDED):
        return torch.stack(tuple(parts)).float().sum(0).to(parts[0].dtype)
    if "layernorm" in name or name.startswith("norm."):
        if all(torch.equal(part, parts[0]) for part in parts[1:]):
            return parts[0]  # the mean of copies, without rounding
        return torch.stack(tuple(parts)).float().mean(0).to(parts[0].dtype)
    return torch.cat(tuple(parts), 0)


def split_parts(name: str, tensor: Tensor, num_parts: int) -> list[Tensor]:
    """The inverse of `merge_parts`, bit for bit: of what is added up, the first part has all.

    Raises:
        ConfigError: the tensor cannot be cut into equal parts.
    """
    if "layernorm" in name or name.startswith("norm."):
        return [tensor] * num_parts
    if name.endswith(_ADDED):
        return [tensor, *(torch.zeros_like(tensor) for _ in range(num_parts - 1))]
    dimension = 1 if name.endswith(_BY_COLUMNS) else 0
    if tensor.shape[dimension] % num_parts:
        raise ConfigError(f"{name} has {tensor.shape[dimension]} {'columns' if dimension else 'rows'}, not a multiple of parts={num_parts}")
    return [part.contiguous() for part in tensor.chunk(num_parts, dimension)]


def is_neox_checkpoint(folder: Path) -> bool:
    """Whether this is a `global_stepN`, or a folder whose file `latest` names one."""
    return (folder / _LATEST).is_file() or any(folder.glob("layer_*-model_*-model_states.pt"))


def read_neox_checkpoint(folder: Path, *, configs: Sequence[Path] = ()) -> GPTNeoX:
    """Read a checkpoint of GPT-NeoX with any number of model-parallel parts; tensors keep their dtype.

    Args:
        folder: `global_stepN`, or one whose file `latest` names it.
        configs: of the run; the checkpoint's own, in `configs/`, if none are given.

    Raises:
        CheckpointError: a file is absent or broken, or tensors are missing, unexpected or of another shape.
        ConfigError: there is no configuration, or it asks for what is not supported.
    """
    if (folder / _LATEST).is_file():
        folder = folder / (folder / _LATEST).read_text(encoding="utf-8").strip()
    files: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob("layer_*.pt")):
        if match := _LAYER_FILE.fullmatch(path.name):
            files.setdefault(int(match[1]), {})[int(match[2])] = path
    if not files:
        raise CheckpointError(f"{folder} has no layer_NN-model_MM-model_states.pt, so it is not a checkpoint of GPT-NeoX")
    num_parts = 1 + max(part for parts in files.values() for part in parts)
    layers: dict[int, dict[str, Tensor]] = {}
    for number, parts in files.items():
        if absent := sorted(set(range(num_parts)) - set(parts)):
            raise CheckpointError(f"{folder}: layer {number} has no file of model_{absent[0]:02}, other layers have; get it again")
        layers[number] = _merged([_read(parts[part]) for part in range(num_parts)], folder, number)
    embedding = layers.get(0, {}).get("word_embeddings.weight")
    if embedding is None:
        raise CheckpointError(f"{folder}: layer_00 has no word_embeddings.weight")
    config = neox_model(_settings(folder, configs), len(embedding), source=f"the configuration of {folder}")
    tensors: dict[str, Tensor] = {}
    for number, layer in layers.items():
        for theirs, tensor in layer.items():
            tensors[_hf_name(number, theirs, config.num_layers) or f"layer_{number:02} {theirs}"] = tensor
    with torch.device("meta"):
        model = GPTNeoX(config)
    matched = match_tensors(model, tensors, NAMES, source=folder)
    model.load_state_dict({name: tensor.clone() for name, tensor in matched.items()}, assign=True)
    return model.eval().requires_grad_(False)


def write_neox_checkpoint(model: GPTNeoX, folder: Path, *, step: int, num_parts: int = 1) -> Path:
    """Write `folder/global_stepN`, in so many model-parallel parts, and the file `latest`.

    Raises:
        ConfigError: a size is not a multiple of the parts, the output matrix is tied, which is not written yet, or the checkpoint is there.
    """
    config = model.config
    if config.is_tied:
        raise ConfigError("the output matrix is the embedding; GPT-NeoX's files of such models are not written, export it as hf")
    if num_parts < 1 or config.num_heads % num_parts:
        raise ConfigError(f"parts={num_parts} does not divide num_heads={config.num_heads}")
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        number, theirs = _neox_name(name, config.num_layers)
        layers.setdefault(number, {})[theirs] = tensor.detach().cpu().contiguous()
    layers |= {1: {}, config.num_layers + 2: {}}  # GPT-NeoX has two stages without weights
    target = folder / f"global_step{step}"
    if target.exists():
        raise ConfigError(f"{target} is there; name another folder or step")
    with durable_folder(target) as partial:
        for number, tensors in layers.items():
            split = {name: split_parts(name, tensor, num_parts) for name, tensor in tensors.items()}
            for part in range(num_parts):
                content = {name: pieces[part].clone() for name, pieces in split.items()}
                if content or number == 1:
                    _save(content, partial / f"layer_{number:02}-model_{part:02}-model_states.pt")
        for part in range(num_parts):
            state = {"iteration": step, "mp_world_size": num_parts, "dp_world_size": 1, "args": neox_settings(config, num_parts)}
            _save(state, partial / f"mp_rank_{part:02}_model_states.pt")
        (partial / "configs").mkdir()
        settings = _yaml().safe_dump(neox_settings(config, num_parts), sort_keys=False)
        write_flushed(partial / "configs" / "tripod.yml", settings.encode())
    with durable_file(folder / _LATEST) as stream:
        stream.write(target.name.encode())
    return target


def neox_settings(config: GPTNeoXConfig, num_parts: int = 1) -> dict[str, Any]:
    """The architecture as GPT-NeoX configures it.

    Raises:
        ConfigError: GPT-NeoX has no such model.
    """
    if config.hidden_act not in ("gelu", "gelu_new") or config.intermediate_size != 4 * config.hidden_size or not config.attention_bias:
        raise ConfigError(
            f"hidden_act={config.hidden_act!r}, intermediate_size={config.intermediate_size}, attention_bias={config.attention_bias}; "
            "GPT-NeoX's checkpoints have GELU, four times the hidden size, and biases"
        )
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "seq_length": config.max_positions,
        "max_position_embeddings": config.max_positions,
        "pos_emb": "rotary",
        "rotary_pct": config.rope.rotary_dim / config.head_dim,
        "rotary_emb_base": int(config.rope.theta),
        "no_weight_tying": not config.is_tied,
        "gpt_j_residual": config.is_parallel,
        "layernorm_epsilon": config.norm_eps,
        "bias_gelu_fusion": config.hidden_act == "gelu_new",
        "model_parallel_size": num_parts,
        "padded_vocab_size": config.vocab_size,
    }


@dataclass(frozen=True, slots=True)
class _Stage:
    """What a file without a layer's number holds."""

    name: str  # theirs
    ours: str
    number: Callable[[int], int]  # of the file, by the number of layers


_STAGES = (
    _Stage("word_embeddings.weight", "embedding.weight", lambda layers: 0),
    _Stage("norm.weight", "norm.weight", lambda layers: layers + 3),
    _Stage("norm.bias", "norm.bias", lambda layers: layers + 3),
    _Stage("final_linear.weight", "head.weight", lambda layers: layers + 4),
)


def _hf_name(number: int, name: str, num_layers: int) -> str | None:
    """Of a tensor in the file of a stage; None where no such model has it."""
    for stage in _STAGES:
        if (number, name) == (stage.number(num_layers), stage.name):
            return NAMES.to_checkpoint(stage.ours)
    module, _, kind = name.rpartition(".")
    if 2 <= number < num_layers + 2 and module in _OF_LAYER and kind in ("weight", "bias"):
        return NAMES.to_checkpoint(f"blocks.{number - 2}.{_OF_LAYER[module]}.{kind}")
    return None


def _neox_name(ours: str, num_layers: int) -> tuple[int, str]:
    for stage in _STAGES:
        if ours == stage.ours:
            return stage.number(num_layers), stage.name
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", ours)
    assert match is not None, ours
    [module] = [theirs for theirs, mine in _OF_LAYER.items() if mine == match[2]]
    return int(match[1]) + 2, f"{module}.{match[3]}"


def _merged(parts: Sequence[Mapping[str, Tensor]], folder: Path, number: int) -> dict[str, Tensor]:
    names = parts[0].keys()
    if any(part.keys() != names for part in parts):
        raise CheckpointError(f"{folder}: the parts of layer {number} hold different tensors; they are not of one checkpoint")
    return {name: merge_parts(name, [part[name] for part in parts]) for name in names if not _IGNORABLE.fullmatch(name)}


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors alone: a pickle that holds anything else is not run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{path} cannot be read ({str(error).splitlines()[0]}); get it again") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} does not hold a table of tensors")
    return content


def _settings(folder: Path, configs: Sequence[Path]) -> dict[str, Any]:
    from tripod.training.recipe_file import read_content

    found = list(configs) or sorted(path for path in (folder / "configs").glob("*") if path.suffix in (".yml", ".yaml"))
    if not found:
        raise ConfigError(
            f"{folder} has no configs/*.yml, so its number of heads is not known; give the run's configuration (--config FILE)"
        )
    return merge_neox({path: read_content(path) for path in found})


def _save(content: object, path: Path) -> None:
    stream = io.BytesIO()
    torch.save(content, stream)
    write_flushed(path, stream.getvalue())


def _yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyyaml", "training", "writing a configuration") from error
    return yaml
