"""The part of a recipe that says what is trained: an architecture and its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tripod.models.architectures import DecoderConfig
    from tripod.models.gpt_neox import GPTNeoXConfig
    from tripod.models.llama import LlamaConfig
    from tripod.models.openmoe import OpenMoEConfig
    from tripod.models.sparse_llama import SparseLlamaConfig
    from tripod.ops.moe_routing import RouterConfig

Problem = tuple[str, str]  # where, and what


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """The architecture. What is None follows from the rest.

    mixtral and olmoe are the sparse ones that transformers opens, openmoe is saved as its authors did; sparse_llama is a Llama with any
    router of `tripod.ops.moe_routing` but for two: experts that choose their tokens look at those that follow, which next-token training
    must not, and jitter, whose numbers a run that goes on would have to draw again, is not yet in recipes.
    """

    architecture: Literal["gpt_neox", "llama", "mixtral", "olmoe", "openmoe", "sparse_llama"] = "gpt_neox"
    vocab_size: int  # rows of the embedding: at least the tokenizer's ids
    hidden_size: int
    num_layers: int
    num_heads: int
    max_positions: int = 2048
    intermediate_size: int | None = None  # 4 * hidden_size; for llama 8/3 of it, rounded up to a multiple of 64
    num_kv_heads: int | None = None  # of llama; num_heads
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu_new"  # of gpt_neox: GELU by erf, or by tanh as Pythia was trained
    rotary_fraction: float | None = None  # of a head; a quarter in gpt_neox, all in llama
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    is_parallel: bool = True  # of gpt_neox: attention and MLP side by side, not one after the other
    is_tied: bool = False
    initialization: Literal["small-wang", "normal-scaled", "fan-in"] = "small-wang"  # see `tripod.models.initialize`
    mup_base_width: int | None = None  # the hidden size for which optimizer.lr was found: muP carries it over (arXiv:2203.03466)

    num_experts: int | None = None  # of a sparse layer, and so the fields below
    top_k: int = 2  # experts that a token goes through
    expert_size: int | None = None  # intermediate_size / top_k, so that as much is computed as in a dense model; all of it in openmoe, and
    # if upcycled
    shared_size: int = 0  # of an expert that all tokens go through (sparse_llama); 0: none
    sparse_every: int = 1  # layer i, from 0, is sparse if this divides i + 1 (sparse_llama, openmoe)
    is_normalized: bool | None = None  # the weights of a token's experts sum to 1; in mixtral they do, elsewhere not
    capacity_factor: float | None = None  # of an expert's room while training; None: no token is dropped
    capacity_rule: Literal["per-token", "per-assignment"] = "per-token"  # see `tripod.ops.moe_routing.Capacity`
    capacity_tokens: int | None = None  # that compete for this room; all that are computed at once in a process
    capacity_minimum: int = 4  # places of an expert, whatever the factor
    gate: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: sparse_llama
    router_scale: float = 1.0  # of the weights of a token's experts, after they were normalised (sparse_llama)
    router_precision: Literal["float32", "model"] = "float32"  # of the router's product; model: that of all others (`precision`)
    has_selection_bias: bool = False  # balances the load without a loss (sparse_llama); see loss.bias_rate
    upcycled_from: str | None = None  # a dense checkpoint, run@stepN: its weights are the beginning, its MLP that of every expert

    def problems(self, path: str) -> Iterator[Problem]:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"):
            if getattr(self, name) < 1:
                yield f"{path}.{name}", f"{getattr(self, name)}; must be at least 1"
        if self.num_heads > 0 and self.hidden_size % self.num_heads:
            yield f"{path}.num_heads", f"{self.num_heads} does not divide hidden_size={self.hidden_size}"
        elif self.num_heads > 0 and (self.rotary_dim < 2 or self.rotary_dim % 2 or self.rotary_dim > self.hidden_size // self.num_heads):
            yield (
                f"{path}.rotary_fraction",
                f"{self._rotary_fraction} of a head of {self.hidden_size // self.num_heads} rotates {self.rotary_dim} numbers; "
                "must be even, at least 2, and within the head",
            )
        if self.intermediate_size is not None and self.intermediate_size < 1:
            yield f"{path}.intermediate_size", f"{self.intermediate_size}; must be at least 1"
        if self.architecture == "gpt_neox" and self.num_kv_heads not in (None, self.num_heads):
            yield f"{path}.num_kv_heads", f"{self.num_kv_heads}; gpt_neox has as many as num_heads={self.num_heads}"
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            yield f"{path}.num_kv_heads", f"{self.num_kv_heads} does not divide num_heads={self.num_heads}"
        if self.architecture != "gpt_neox" and not self.is_parallel:
            yield f"{path}.is_parallel", f"false; {self.architecture} has its attention before its MLP in any case, so leave it out"
        if self.is_sparse:
            yield from self._sparse_problems(path)
        elif self.num_experts is not None or self.upcycled_from is not None:
            name = "upcycled_from" if self.num_experts is None else "num_experts"
            yield f"{path}.{name}", f"given for {self.architecture}, which is dense; use mixtral, olmoe, openmoe or sparse_llama"
        if self.mup_base_width is not None and self.mup_base_width < 1:
            yield f"{path}.mup_base_width", f"{self.mup_base_width}; must be at least 1"
        if self.mup_base_width is not None and self.is_tied:
            yield f"{path}.mup_base_width", "given with is_tied: embedding and head need different scales"
        if self.norm_eps <= 0:
            yield f"{path}.norm_eps", f"{self.norm_eps}; must be positive"

    def _sparse_problems(self, path: str) -> Iterator[Problem]:
        if self.num_experts is None or not 1 <= self.top_k <= self.num_experts:
            yield f"{path}.num_experts", f"{self.num_experts} with top_k={self.top_k}; {self.architecture} needs at least top_k of them"
        for name in ("expert_size", "capacity_tokens", "capacity_minimum", "sparse_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{path}.{name}", f"{value}; must be at least 1"
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            yield f"{path}.capacity_factor", f"{self.capacity_factor}; must be positive"
        if not self.router_scale > 0:
            yield f"{path}.router_scale", f"{self.router_scale}; must be positive"
        if self.is_normalized is False and self.architecture == "mixtral":
            yield f"{path}.is_normalized", "false; in mixtral weights sum to 1: use sparse_llama"
        if self.is_normalized and self.architecture == "openmoe":
            yield f"{path}.is_normalized", "true; in openmoe weights are gates as they are: use sparse_llama"
        if self.architecture == "openmoe":
            if self.expert_size not in (None, self._intermediate_size):
                yield f"{path}.expert_size", f"{self.expert_size}; in openmoe it is intermediate_size"
            if self.is_tied or self.num_kv_heads not in (None, self.num_heads) or self._rotary_fraction != 1.0 or self.upcycled_from:
                yield f"{path}.architecture", "openmoe; it has no is_tied, num_kv_heads, rotary_fraction and upcycled_from: leave them out"
        if self.architecture != "sparse_llama":
            own = {"shared_size": 0, "gate": "softmax", "router_scale": 1.0, "has_selection_bias": False}
            own |= {} if self.architecture == "openmoe" else {"sparse_every": 1}
            for name in (name for name, only in own.items() if getattr(self, name) != only):
                yield f"{path}.{name}", f"{getattr(self, name)}; {self.architecture} knows only {own[name]}: use sparse_llama"
        if self.mup_base_width is not None:
            yield f"{path}.mup_base_width", "given for a sparse model; muP is for dense ones"

    @property
    def is_sparse(self) -> bool:
        return self.architecture not in ("gpt_neox", "llama")

    @property
    def mup_ratio(self) -> float:
        """How many times wider than the model for which the learning rate was found; 1 without muP."""
        return 1.0 if self.mup_base_width is None else self.hidden_size / self.mup_base_width

    @property
    def _rotary_fraction(self) -> float:
        default = 0.25 if self.architecture == "gpt_neox" else 1.0
        return default if self.rotary_fraction is None else self.rotary_fraction

    @property
    def rotary_dim(self) -> int:
        return int(self.hidden_size // self.num_heads * self._rotary_fraction)

    def config(self) -> DecoderConfig:
        """The configuration of `tripod.models`."""
        if self.architecture == "gpt_neox":
            return self.neox_config()
        if self.architecture == "openmoe":
            return self.openmoe_config()
        return self.sparse_config() if self.is_sparse else self.llama_config()

    def neox_config(self) -> GPTNeoXConfig:
        from tripod.models.gpt_neox import GPTNeoXConfig
        from tripod.ops.rope import RopeConfig

        return GPTNeoXConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            max_positions=self.max_positions,
            rope=RopeConfig(rotary_dim=self.rotary_dim, theta=self.rope_theta),
            norm_eps=self.norm_eps,
            hidden_act=self.hidden_act,
            is_parallel=self.is_parallel,
            is_tied=self.is_tied,
        )

    def llama_config(self) -> LlamaConfig:
        """Of a dense model, or of a sparse one but for its experts."""
        from tripod.models.llama import LlamaConfig
        from tripod.ops.rope import RopeConfig

        return LlamaConfig(
            model_type="mistral" if self.architecture == "mixtral" else "llama",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self._intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self.hidden_size // self.num_heads,
            max_positions=self.max_positions,
            rope=RopeConfig(rotary_dim=self.rotary_dim, theta=self.rope_theta),
            norm_eps=self.norm_eps,
            is_tied=self.is_tied,
            qk_norm=self.architecture == "olmoe",
            is_qk_norm_joint=self.architecture == "olmoe",
        )

    @property
    def _intermediate_size(self) -> int:
        return self.intermediate_size or -(-8 * self.hidden_size // (3 * 64)) * 64

    def sparse_config(self) -> SparseLlamaConfig:
        from tripod.models.sparse_llama import SparseLlamaConfig

        return SparseLlamaConfig(
            model_type=self.architecture,
            dense=self.llama_config(),
            router=self.router_config(),
            expert_size=self.expert_size or self._intermediate_size // (self.top_k if self.upcycled_from is None else 1),
            shared_size=self.shared_size,
            dense_layers=tuple(layer for layer in range(self.num_layers) if (layer + 1) % self.sparse_every),
        )

    def openmoe_config(self) -> OpenMoEConfig:
        from tripod.models.openmoe import OpenMoEConfig

        return OpenMoEConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self._intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_dim=self.hidden_size // self.num_heads,
            sparse_interval=self.sparse_every,
            router=self.router_config(),
            max_positions=self.max_positions,
            norm_eps=self.norm_eps,
        )

    def router_config(self) -> RouterConfig:
        from tripod.ops.moe_routing import Capacity, RouterConfig

        assert self.num_experts is not None
        capacity = None
        if self.capacity_factor is not None:
            capacity = Capacity(
                factor=self.capacity_factor,
                rule=self.capacity_rule,
                minimum=self.capacity_minimum,
                group_tokens=self.capacity_tokens,
            )
        return RouterConfig(
            num_experts=self.num_experts,
            top_k=self.top_k,
            gate=self.gate,
            is_normalized=self.architecture == "mixtral" if self.is_normalized is None else self.is_normalized,
            scale=self.router_scale,
            capacity=capacity,
            has_selection_bias=self.has_selection_bias,
            precision=self.router_precision,
        )
