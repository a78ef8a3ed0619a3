"""The model with which a run begins."""

from __future__ import annotations

from tripod.errors import ConfigError
from tripod.models.architectures import Decoder
from tripod.models.initialize import initial_language_model
from tripod.models.llama import Llama
from tripod.models.load import load_language_model
from tripod.models.locate import locate
from tripod.models.sparse_llama import SparseLlamaConfig
from tripod.models.upcycle import upcycle
from tripod.training.recipe import Recipe


def initial_model(recipe: Recipe, *, is_begun: bool) -> Decoder:
    """A float32 model to train, on the CPU: drawn from the recipe's seed, or upcycled from the dense checkpoint that it names.

    Args:
        recipe: of the run.
        is_begun: a checkpoint will be loaded into the model, so what it is upcycled from need not be there any more.

    Raises:
        CheckpointError: there is no such dense checkpoint.
        ConfigError: it is not a dense Llama of the sizes of the recipe's model.
    """
    wanted, seed = recipe.model, recipe.seeds.initialization
    config = wanted.config()
    if wanted.upcycled_from is None or is_begun:
        return initial_language_model(config, seed, wanted.initialization, base_width=wanted.mup_base_width)
    assert isinstance(config, SparseLlamaConfig)
    dense = load_language_model(locate(wanted.upcycled_from))
    if not isinstance(dense, Llama):
        raise ConfigError(f"model.upcycled_from: {wanted.upcycled_from} is no dense model of the Llama family; give one")
    return upcycle(dense, config, seed)
