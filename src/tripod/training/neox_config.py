"""GPT-NeoX's configuration files as recipes. What Tripod cannot do as they say is an error that lists all of it.

Keys may have hyphens or underscores. Settings of machines, launchers, kernels, logging and memory change nothing that is learnt and are
left aside. GPT-NeoX's defaults stand where a file is silent; they are not the recipe's (an activation by tanh only where
`bias-gelu-fusion` is on, weights tied unless `no-weight-tying`, attention before the MLP unless `gpt-j-residual`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripod.errors import ConfigError
from tripod.training.model_recipe import ModelRecipe, Problem
from tripod.training.recipe import raise_problems

if TYPE_CHECKING:
    from tripod.models.gpt_neox import GPTNeoXConfig

_SIZES = ("num_layers", "hidden_size", "num_attention_heads")
_NUM_IDS_OF_20B = 50_277  # of 20B_tokenizer.json
_ROWS_MULTIPLE = 128  # make_vocab_size_divisible_by
_LEFT_ASIDE = {
    "pipe_parallel_size", "model_parallel_size", "output_layer_parallelism", "scaled_upper_triang_masked_softmax_fusion",
    "scaled_masked_softmax_fusion", "zero_optimization", "zero_allow_untested_optimizer", "data_impl", "mmap_warmup", "num_workers",
    "checkpoint_activations", "checkpoint_num_layers", "checkpoint_in_cpu", "partition_activations", "synchronize_each_layer",
    "contiguous_checkpointing", "distributed_backend", "test_data_paths", "log_interval", "steps_per_print", "wall_clock_breakdown",
    "launcher", "deepspeed_slurm", "deepspeed_mpi", "hostfile", "include", "exclude", "comment", "save", "load", "config_files",
    "keep_last_n_checkpoints", "use_wandb", "wandb_group", "wandb_team", "wandb_project", "wandb_host", "tensorboard_dir", "log_dir",
    "log_grad_norm", "log_optimizer_states", "log_param_norm", "tokenizer_type", "train_batch_size", "train_micro_batch_size_per_gpu",
    "gas", "gradient_accumulation_steps", "rotary_save_freqs_buffer", "make_vocab_size_divisible_by", "padded_vocab_size",
    "vocab_file", "merge_file", "rope_fusion", "layernorm_fusion", "rmsnorm_fusion", "bias_dropout_fusion",
    "checkpoint_validation_with_forward_pass", "finetune", "no_load_optim", "no_load_rng", "no_save_optim", "no_save_rng",
    "distributed_timeout_minutes", "master_addr", "master_port", "num_gpus", "num_nodes", "iteration", "do_train", "do_valid",
    "do_test",
}  # fmt: skip


def is_neox_config(content: Mapping[str, Any]) -> bool:
    """Whether this is a configuration of GPT-NeoX, not a recipe."""
    return set(_SIZES) <= {_plain(key) for key in content}


def merge_neox(files: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of several files, as GPT-NeoX takes them.

    Raises:
        ConfigError: two files say the same setting, which GPT-NeoX refuses too.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for path, content in files.items():
        for key, value in content.items():
            name = _plain(key)
            if name in merged:
                raise ConfigError(f"{name} is in {origin[name]} and in {path}; leave it in one of them")
            merged[name], origin[name] = value, path
    return merged


def neox_recipe(content: Mapping[str, Any], *, name: str, source: str, given: Sequence[str] = ()) -> dict[str, Any]:
    """What `recipe_from` takes.

    Args:
        content: of one file, or of several merged.
        name: of the run, which GPT-NeoX does not have: runs/NAME.
        source: what errors call the file.
        given: fields that are set besides, which the file need not have: batch.rows, model.vocab_size.

    Raises:
        ConfigError: naming everything that is wrong, unknown or not supported.
    """
    settings = {_plain(key): value for key, value in content.items()}
    problems: list[Problem] = []
    read = _Reader(settings, problems)
    recipe = {
        "run": f"runs/{name}",
        "num_steps": read("train_iters"),
        "model": _model(read, given),
        "data": _data(read),
        "batch": _batch(read, given),
        "optimizer": _optimizer(read),
        "schedule": _schedule(read),
        "checkpoints": _checkpoints(read),
        "seeds": {seed: read("seed", 1234) for seed in ("initialization", "order", "dropout")},
        "dropout": read("hidden_dropout", 0),
        **_precision(read),
    }
    every, number = read("eval_interval", 1000), read("eval_iters", 100)
    if number and (recipe["data"].get("valid_prefixes") or recipe["data"].get("split")):
        recipe["validation"] = {"every": every, "num_batches": number}
    read.must_be("attention_dropout", 0, "dropout of attention weights")
    problems += [
        (unknown, f"{settings[unknown]!r}; Tripod does not know this setting: take it out if nothing learnt depends on it")
        for unknown in sorted(settings.keys() - read.used - _LEFT_ASIDE)
    ]
    raise_problems(problems, source)
    return recipe


def neox_model(content: Mapping[str, Any], vocab_size: int, *, source: str) -> GPTNeoXConfig:
    """The architecture alone, for a checkpoint whose embedding has so many rows.

    Raises:
        ConfigError: see `neox_recipe`.
    """
    problems: list[Problem] = []
    fields = _model(_Reader({_plain(key): value for key, value in content.items()}, problems), ("model.vocab_size",))
    raise_problems(problems, source)
    return ModelRecipe(**{**fields, "vocab_size": vocab_size}).neox_config()


class _Reader:
    """Hands out settings, and notes which."""

    def __init__(self, settings: Mapping[str, Any], problems: list[Problem]) -> None:
        self.settings = settings
        self.problems = problems
        self.used: set[str] = set()

    def __call__(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        if name not in self.settings and default is None:
            self.problems.append((name, "is required"))
        return self.settings.get(name, default)

    def must_be(self, name: str, only: Any, what: str) -> None:
        value = self(name, only)
        if value != only:
            self.problems.append((name, f"{value!r}; {what} is not supported, only {only!r}"))


def _model(read: _Reader, given: Sequence[str]) -> dict[str, Any]:
    layers, hidden, heads = (read(name) for name in _SIZES)
    if all(isinstance(size, int) and size > 0 for size in (layers, hidden, heads)) and hidden % heads:
        swapped = (
            f"; hidden-size/{layers} is whole, so num-layers={layers} and num-attention-heads={heads} stand in each other's place: "
            f"num-layers: {heads}, num-attention-heads: {layers}, as the released model has"
            if hidden % layers == 0
            else "; use a divisor"
        )
        read.problems.append(("num_attention_heads", f"{heads} does not divide hidden-size={hidden}{swapped}"))
    read.must_be("pos_emb", "rotary", "a position embedding of this kind")
    read.must_be("norm", "layernorm", "a norm of this kind in GPT-NeoX")
    read.must_be("activation", "gelu", "an activation of this kind")
    read.must_be("gpt_j_tied", False, "one norm for attention and MLP")
    read.must_be("init_method_std", 0.02, "another spread of the initial weights")
    kinds = {kind for entry in read("attention_config", [[["global"], layers]]) for kind in entry[0]}
    if unsupported := sorted(kinds - {"flash", "global"}):
        read.problems.append(("attention_config", f"{', '.join(unsupported)}; attention to all that came before is supported"))
    methods = (read("init_method", "normal"), read("output_layer_init_method", "scaled_normal"))
    schemes = {("small_init", "wang_init"): "small-wang", ("normal", "scaled_normal"): "normal-scaled"}
    if methods not in schemes:
        read.problems.append(("init_method", f"{' with '.join(map(str, methods))}; expected small_init with wang_init, or neither"))
    return {
        "architecture": "gpt_neox",
        "vocab_size": _vocab_size(read, given),
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "max_positions": read("max_position_embeddings"),
        "rotary_fraction": read("rotary_pct", 1.0),
        "rope_theta": read("rotary_emb_base", 10_000),
        "norm_eps": read("layernorm_epsilon", 1e-5),
        "hidden_act": "gelu_new" if read("bias_gelu_fusion", False) else "gelu",
        "is_parallel": read("gpt_j_residual", False),
        "is_tied": not read("no_weight_tying", False),
        "initialization": schemes.get(methods, "small-wang"),
    }


def _vocab_size(read: _Reader, given: Sequence[str]) -> int | None:
    """Rows of the embedding: the tokenizer's ids, rounded up to a multiple for each model-parallel part."""
    settings = read.settings
    if "padded_vocab_size" in settings:
        return int(settings["padded_vocab_size"])
    file = str(settings.get("vocab_file", ""))
    if Path(file).name != "20B_tokenizer.json":
        if "model.vocab_size" not in given:
            read.problems.append(("vocab_file", f"{file!r} does not say how many ids it has; give model.vocab_size"))
        return None
    multiple = int(settings.get("make_vocab_size_divisible_by", _ROWS_MULTIPLE)) * int(settings.get("model_parallel_size", 1))
    return -(-_NUM_IDS_OF_20B // multiple) * multiple


def _data(read: _Reader) -> dict[str, Any]:
    data: dict[str, Any] = {"tokenizer": str(read.settings.get("vocab_file", "tokenizer"))}
    if "data_path" in read.settings:
        return data | {"prefixes": [read("data_path")], "split": read("split", "969,30,1")}
    data["prefixes"] = read("train_data_paths")
    for ours, theirs in (("weights", "train_data_weights"), ("valid_prefixes", "valid_data_paths")):
        if theirs in read.settings:
            data[ours] = read(theirs)
    return data


def _batch(read: _Reader, given: Sequence[str]) -> dict[str, Any]:
    settings = read.settings
    micro = settings.get("train_micro_batch_size_per_gpu")
    batch = {"seq_length": read("seq_length"), "micro_rows": micro}
    if "train_batch_size" in settings:
        batch["rows"] = settings["train_batch_size"]
    elif "batch.rows" not in given:
        accumulated = settings.get("gradient_accumulation_steps", settings.get("gas", 1))
        read.problems.append(
            (
                "train_batch_size",
                f"is not given, so the rows of a step depend on the number of GPUs: {micro} * {accumulated} for each group of "
                "model-parallel ones; give batch.rows, which is 1024 for Pythia",
            )
        )
    return batch


def _optimizer(read: _Reader) -> dict[str, Any]:
    optimizer = read("optimizer", {}) or {}
    if str(optimizer.get("type", "Adam")).lower() not in ("adam", "adamw"):
        read.problems.append(("optimizer.type", f"{optimizer['type']!r}; Adam is supported, with decoupled weight decay as in GPT-NeoX"))
    parameters = dict(optimizer.get("params", {}))
    beta1, beta2 = parameters.pop("betas", (0.9, 0.999))
    found = {"lr": parameters.pop("lr", None), "beta1": beta1, "beta2": beta2, "eps": parameters.pop("eps", 1e-8)}
    if found["lr"] is None:
        read.problems.append(("optimizer.params.lr", "is required"))
    read.problems.extend((f"optimizer.params.{name}", "is not supported") for name in parameters)
    return found | {"weight_decay": read("weight_decay", 0.01), "clip": read("gradient_clipping", 1.0)}


def _schedule(read: _Reader) -> dict[str, Any]:
    style, steps, decay = read("lr_decay_style", "linear"), read("train_iters"), read("lr_decay_iters", read("train_iters"))
    if style not in ("cosine", "linear", "constant"):
        read.problems.append(("lr_decay_style", f"{style!r}; expected cosine, linear or constant"))
    if decay != steps:
        read.problems.append(("lr_decay_iters", f"{decay}; a decay that ends elsewhere than train-iters={steps} is not supported"))
    peak = (read.settings.get("optimizer") or {}).get("params", {}).get("lr")
    min_lr = read("min_lr", 0.0)
    share = round(min_lr / peak, 12) if isinstance(peak, int | float) and peak and isinstance(min_lr, int | float) else 0.0
    return {"kind": style, "warmup": read("warmup", 0.01), "min_lr": share}


def _checkpoints(read: _Reader) -> dict[str, Any]:
    read.must_be("checkpoint_scale", "linear", "a grid of this kind")
    extra = sorted(set(read("extra_save_iters", [])) - {0})
    log_until = 0
    while (1 if not log_until else log_until * 2) in extra:
        log_until = 1 if not log_until else log_until * 2
    also = [step for step in extra if step > log_until or step & (step - 1)]
    return {"log_until": log_until, "every": read("checkpoint_factor", read.settings.get("save_interval", 0)), "also": also}


def _precision(read: _Reader) -> dict[str, Any]:
    half, brain = read("fp16", {}) or {}, read("bf16", {}) or {}
    named = read("precision", "")
    if brain.get("enabled") or named == "bfloat16":
        return {"precision": "bf16"}
    if not (half.get("enabled", half.get("fp16")) or named == "fp16"):
        return {"precision": "fp32"}
    if half.get("loss_scale", 0):
        read.problems.append(("fp16.loss_scale", f"{half['loss_scale']}; only 0, a scale that finds itself"))
    scaling = {
        "initial": 2.0 ** half.get("initial_scale_power", 32),
        "window": half.get("loss_scale_window", 1000),
        "hysteresis": half.get("hysteresis", 2),
        "minimum": half.get("min_loss_scale", half.get("min_scale", 1)),
    }
    return {"precision": "fp16", "loss_scaling": scaling}


def _plain(key: object) -> str:
    return str(key).replace("-", "_")
