"""Compiles the CPU kernels when the package is installed, wherever a compiler is there; an install never fails for want of one."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_ROOM = "src/tripod/ops/kernels/cpu"


class KernelBuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling carries no types
    """Puts the shared objects into the wheel, which is then for this platform; without them it stays a wheel for any."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        spec = importlib.util.spec_from_file_location("tripod_kernel_build", Path(self.root) / _ROOM / "build.py")
        assert spec is not None
        assert spec.loader is not None
        room = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(room)
        try:
            objects = room.build()
        except (RuntimeError, OSError) as error:
            self.app.display_warning(f"The CPU kernels were not compiled; `tripod doctor` says what that costs. {error}")
            return
        build_data["artifacts"] += [f"/{_ROOM}/{path.name}" for path in objects]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"  # no Python ABI: called by ctypes
