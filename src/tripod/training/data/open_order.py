"""From data sets on disk to the order of a run, named and sized as GPT-NeoX does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tripod.errors import ConfigError
from tripod.training.data.index_maps import OrderSpec, neox_num_samples, open_index_maps, split_documents
from tripod.training.data.indexed_dataset import IndexedDataset
from tripod.training.data.mixture import MixedRows, samples_needed
from tripod.training.data.order import DataOrder, PackedRows, Rows
from tripod.training.data.progress import Progress, no_progress

Part = Literal["train", "valid", "test"]


def open_order(
    prefixes: Sequence[Path],
    *,
    seq_length: int,
    batch_size: int,
    num_steps: int,
    seed: int,
    part: Part = "train",
    weights: Sequence[float] | None = None,
    split: str | None = None,
    maps_folder: Path | None = None,
    progress: Progress = no_progress,
) -> DataOrder:
    """Open the order of a run, computing its index maps where they are not cached beside the data.

    With `split`, one data set is divided among training, validation and test. Without, all of each data set belongs to `part`, and
    half a percent more samples are asked for than needed, as GPT-NeoX does (so the number of epochs may differ from the split's).

    Args:
        prefixes: the data sets, each without .bin and .idx.
        seq_length: targets of a row.
        batch_size: rows of a step, over all devices.
        num_steps: of the run; it matters only by the number of epochs that it takes.
        seed: of the order alone.
        part: what the order is for; part of the names of the cached maps.
        weights: of the data sets; equal by default.
        split: shares of training, validation and test, such as "969,30,1".
        maps_folder: where index maps are kept; beside the data by default.
        progress: see `build_index_maps`.

    Raises:
        ConfigError: no data set, several with a split, or numbers that cannot work.
        DatasetError: a data set cannot be opened, or cached maps do not belong to it.
    """
    if not prefixes or (split is not None and len(prefixes) > 1):
        raise ConfigError(f"{len(prefixes)} data sets with split={split!r}; give at least one, and exactly one with a split")
    num_rows = num_steps * batch_size
    shares = np.ones(len(prefixes)) if weights is None else np.asarray(weights, np.float64)
    if len(shares) != len(prefixes):
        raise ConfigError(f"{len(prefixes)} data sets and {len(shares)} weights; give one weight each")
    parts: list[Rows] = []
    for number, (prefix, share) in enumerate(zip(prefixes, shares / shares.sum(), strict=True)):
        dataset = IndexedDataset.open(prefix)
        if split is None:
            needed = neox_num_samples(num_rows) if len(prefixes) == 1 else samples_needed(num_rows, float(share))
            name, documents, num_samples = f"{part}_{number}", None, needed
        else:
            pieces = dict(zip(("train", "valid", "test"), split_documents(split, len(dataset)), strict=True))
            name, documents, num_samples = part, pieces[part], num_rows
        spec = OrderSpec(seq_length=seq_length, num_samples=num_samples, seed=seed, documents=documents)
        beside = prefix if maps_folder is None else maps_folder / prefix.name
        maps = open_index_maps(beside, np.array(dataset.sizes), spec, name=name, progress=progress)
        parts.append(PackedRows(dataset, maps, reverse_folder=beside.parent))
    rows = parts[0] if len(parts) == 1 else MixedRows.of(parts, shares.tolist(), num_rows)
    order = DataOrder(rows, batch_size)
    if order.num_steps < num_steps:
        raise ConfigError(
            f"num_steps={num_steps} of {batch_size} rows; the order serves {rows.num_rows} rows (GPT-NeoX never serves the last sample): "
            f"use {order.num_steps} steps, or no split"
        )
    return order
