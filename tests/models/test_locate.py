"""Addresses of models: folders, steps of runs, and the hub's cache, laid out as huggingface_hub lays it out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import reference
from tripod.errors import CheckpointError
from tripod.models.load import load_language_model
from tripod.models.locate import locate

FIRST, SECOND = "a" * 40, "b" * 40  # commit hashes


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models--tiny--pythia with two commits: `step3000` points to the first, `main` to the second. The weights differ."""
    home = tmp_path_factory.mktemp("hf_home")
    repository = home / "hub" / "models--tiny--pythia"
    for commit, branch, case in ((FIRST, "step3000", "gpt_neox parallel"), (SECOND, "main", "gpt_neox sequential")):
        made = home / "made" / branch
        reference.save(case, made)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        for path in made.iterdir():
            blob = repository / "blobs" / f"{branch}-{path.name}"
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
        (repository / "refs" / branch).write_text(commit)
    return home


def located(address: str, home: Path) -> subprocess.CompletedProcess[str]:
    """`locate` in a fresh process, as huggingface_hub reads its environment once, when it is imported."""
    code = f"from tripod.models.locate import locate; print(locate({address!r}))"
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize(("address", "commit"), [("tiny/pythia@step3000", FIRST), ("tiny/pythia", SECOND), (f"tiny/pythia@{FIRST}", FIRST)])
def test_a_revision_is_found_in_the_cache_by_branch_and_by_commit(cache: Path, address: str, commit: str) -> None:
    folder = Path(located(address, cache).stdout.strip())
    assert folder == cache / "hub" / "models--tiny--pythia" / "snapshots" / commit
    assert load_language_model(folder).config.is_parallel == (commit == FIRST)  # type: ignore[union-attr]


def test_an_unknown_revision_is_refused_with_the_cached_ones(cache: Path) -> None:
    error = located("tiny/pythia@step9", cache).stderr
    assert "CheckpointError: revision 'step9' of tiny/pythia is not in the cache" in error
    assert f"cached revisions: main, step3000, {FIRST}, {SECOND}" in error


def test_a_model_that_is_not_in_the_cache_is_refused_with_what_to_do(cache: Path) -> None:
    error = located("tiny/other@step3000", cache).stderr
    assert "CheckpointError: no local folder 'tiny/other', and tiny/other@step3000 is not in the cache" in error
    assert "HF_HUB_OFFLINE is set" in error
    assert "hf download tiny/other --revision step3000" in error


def test_locating_imports_no_torch(cache: Path) -> None:
    code = "import sys; from tripod.models.locate import locate; locate('.'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_path_is_itself_and_a_step_is_a_folder_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "tiny" / "step512").mkdir(parents=True)
    (tmp_path / "tiny" / "step64").mkdir()
    (tmp_path / "model.bin").touch()
    assert locate(str(tmp_path / "tiny")) == tmp_path / "tiny"
    assert locate(str(tmp_path / "model.bin")) == tmp_path / "model.bin"
    assert locate(f"{tmp_path}/tiny@step512") == tmp_path / "tiny" / "step512"
    with pytest.raises(CheckpointError, match="no checkpoint 'step1'; it has step64, step512"):
        locate(f"{tmp_path}/tiny@step1")


def test_an_address_of_no_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model at .*absent.*give the path"):
        locate(str(tmp_path / "absent"))
