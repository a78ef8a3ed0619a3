"""Building and choosing: a name that follows the sources, a level that fits the processor, and reasons in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.kernels.cpu.levels import needs_kernels
from tripod.errors import ConfigError
from tripod.ops.kernels.cpu import build, library


def _room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "ROOM", folder)
    return folder


def test_an_object_has_another_name_when_a_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = _room(tmp_path, monkeypatch)
    before = build.object_path("portable")
    (room / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    assert build.object_path("portable") != before


@needs_kernels
def test_building_again_replaces_the_object_of_the_older_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = _room(tmp_path, monkeypatch)
    [first] = build.build(["portable"])
    (room / "two.cpp").write_text('extern "C" int two() { return 2; }\n')
    [second] = build.build(["portable"])
    assert sorted(room.glob("*.so")) == [second]
    assert second != first


@needs_kernels
def test_what_the_compiler_said_is_in_the_error_and_no_half_object_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = _room(tmp_path, monkeypatch)
    (room / "one.cpp").write_text("int one() { return missing_name; }\n")
    with pytest.raises(RuntimeError, match="missing_name"):
        build.build(["portable"])
    assert [path.name for path in room.iterdir()] == ["one.cpp"]


def test_without_a_compiler_the_reason_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _room(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler .* apt-get install"):
        build.build(["portable"])


def test_a_processor_without_vnni_gets_the_level_below(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = build.LEVELS["avx512"][0] | build.LEVELS["avx2"][0]
    monkeypatch.setattr(build, "processor_features", lambda: needed - {"avx512_vnni"})
    assert build.levels_here() == ("avx2", "portable")


def _ask(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=120
    )
    return run.stdout.strip()


def test_a_variable_switches_the_kernels_off_and_the_reason_names_it() -> None:
    code = "from tripod.ops.kernels.cpu import library; print(library.is_available(), library.why_not())"
    assert _ask(code, TRIPOD_KERNELS="off") == "False TRIPOD_KERNELS=off switches them off"
    assert "names no level" in _ask(code, TRIPOD_KERNELS="sse9")


def test_the_description_says_what_the_absence_costs_and_why() -> None:
    code = "from tripod.ops.kernels.cpu import library; print(library.describe())"
    assert _ask(code, TRIPOD_KERNELS="off") == (
        "none, so decoding takes the torch path, which is slower most of all in batches, and int4 is not available: "
        "TRIPOD_KERNELS=off switches them off"
    )


def test_the_description_does_not_wait_for_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _room(tmp_path, monkeypatch)
    monkeypatch.delenv("TRIPOD_KERNELS", raising=False)
    monkeypatch.setattr(library, "find_compiler", lambda: "g++")
    assert library.describe().endswith("python -m tripod.ops.kernels.cpu.build")
    assert not list(tmp_path.glob("*.so"))


@needs_kernels
def test_a_variable_names_the_level() -> None:
    assert _ask("from tripod.ops.kernels.cpu import library; print(library.load())", TRIPOD_KERNELS="portable") == "portable"


def test_an_unavailable_level_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "levels_here", lambda: ("portable",))
    monkeypatch.setattr(library, "_loaded", {})
    with pytest.raises(ConfigError, match="avx512_vnni"), library.level_forced("avx512"):
        pass
