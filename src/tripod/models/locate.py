"""Where the files of a model lie, from the address that a user writes. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tripod.errors import CheckpointError, MissingExtraError

_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>.+))?")
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*/config.json")  # configs, tokenizers, pooling


def locate(address: str, *, download: bool = True) -> Path:
    """Find a model on this machine, or fetch it from the hub.

    Args:
        address: the path of a checkpoint's folder or of a llama2.c `.bin`; `run@stepN` for the folder `run/stepN` of a training
            run; or `org/name`, `org/name@revision` on the hub, where a revision is a branch, a tag or a whole commit hash. What the
            hub's cache holds (HF_HOME) is used without network when HF_HUB_OFFLINE=1, or when the hub cannot be reached.
        download: False looks on this machine only.

    Returns:
        An existing folder, or the existing file.

    Raises:
        CheckpointError: nothing is there; the message says where was looked and what to do.
        MissingExtraError: the address is of the hub and huggingface_hub is not installed.
    """
    path = Path(address).expanduser()
    if path.exists():
        return path
    base, at, revision = address.rpartition("@")
    if at and Path(base).expanduser().is_dir():
        return _step_of_run(Path(base).expanduser(), revision)
    hub_id = _HUB_ID.fullmatch(address)
    if hub_id is None:
        raise CheckpointError(
            f"no model at {address!r}: no such file or folder, and not a hub id; "
            f"give the path of a checkpoint, run@stepN, or org/name@revision"
        )
    return _from_hub(hub_id["name"], hub_id["revision"], download=download)


def _step_of_run(run: Path, step: str) -> Path:
    if (run / step).is_dir():
        return run / step
    steps = sorted((entry.name for entry in run.glob("step*") if entry.is_dir()), key=lambda name: (len(name), name))
    raise CheckpointError(f"{run} has no checkpoint {step!r}; it has {', '.join(steps) or 'none'}")


def _from_hub(name: str, revision: str | None, *, download: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtraError("huggingface_hub", "engine", f"loading {name!r} from the hub") from None

    def fetch(patterns: Sequence[str]) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=not download))

    try:
        folder = fetch([*_SMALL_FILES, "model*.safetensors"])
        if not any(folder.glob("*.safetensors")):  # an old repository: pickled weights only
            fetch(["pytorch_model*.bin"])
        return folder
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_not_in_cache(name, revision, download=download)) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"no local folder {name!r}, and the hub does not give {_spelled(name, revision)}: {reason}; check the name and the revision, "
            f"and for a gated model log in with `hf auth login`"
        ) from error


def _not_in_cache(name: str, revision: str | None, *, download: bool) -> str:
    """What to do about a model that is neither in the cache nor to be had."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    repository = cache / f"models--{name.replace('/', '--')}"
    refs = repository / "refs"
    held = sorted(path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file())
    held += sorted(path.name for path in (repository / "snapshots").glob("*"))
    if not download:
        cause = "nothing is downloaded here"
    elif constants.HF_HUB_OFFLINE:
        cause = "HF_HUB_OFFLINE is set"
    else:
        cause = "the hub cannot be reached"
    if held:
        return f"revision {revision or 'main'!r} of {name} is not in the cache {cache} and {cause}; cached revisions: {', '.join(held)}"
    return (
        f"no local folder {name!r}, and {_spelled(name, revision)} is not in the cache {cache} while {cause}; give the path of "
        f"a checkpoint, or with a connection run: hf download {name}{f' --revision {revision}' if revision else ''}"
    )


def _spelled(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name
