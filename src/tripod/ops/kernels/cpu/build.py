"""Compiles the room's C++ files into one shared object for each level of processor: `python -m tripod.ops.kernels.cpu.build`.

Uses nothing but the standard library and imports nothing of Tripod: the build hook of the package runs this file before the package is
installed. An object's name carries the hash of the sources and flags it came from, so an object that does not match is never loaded.

`TRIPOD_SANITIZE=address,undefined` names sanitizers of the compiler: those objects lie beside the others, and are for a process that has
the sanitizers' libraries loaded first (`python -m benchmarks.campaigns sanitizers` starts such processes).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOM = Path(__file__).parent
# Best first. What a processor must have for a level, as /proc/cpuinfo calls it, and the compiler's flags for it.
LEVELS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "avx512": (
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni", "fma"}),
        ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"),
    ),
    "avx2": (frozenset({"avx2", "fma", "f16c", "bmi2"}), ("-march=x86-64-v3",)),
    "portable": (frozenset(), ()),
}
# No flag lets the compiler change the order of a sum: a row's result must not depend on its place in the batch.
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wall"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_TIMEOUT_S = 900.0


def find_compiler() -> str | None:
    """The C++ compiler: `$CXX`, else the first of g++, clang++ and c++ on the path; None where there is none."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        if name and shutil.which(shlex.split(name)[0]):
            return name
    return None


def levels_here() -> tuple[str, ...]:
    """The levels that this processor can run, best first."""
    features = processor_features()
    return tuple(level for level, (needed, _) in LEVELS.items() if needed <= features)


def processor_features() -> frozenset[str]:
    """The features of the processor that its system lets programs use; empty where the system does not tell (then: portable)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def buildable_levels() -> tuple[str, ...]:
    """The levels that a compiler for this kind of machine can make."""
    return tuple(LEVELS) if platform.machine().lower() in ("x86_64", "amd64") else ("portable",)


def flags(level: str) -> tuple[str, ...]:
    """What the compiler is told for a level."""
    checks = os.environ.get("TRIPOD_SANITIZE")
    return *_FLAGS, *LEVELS[level][1], *((f"-fsanitize={checks}", "-fno-sanitize-recover=all", "-O1", "-g") if checks else ())


def _prefix(level: str) -> str:
    return f"_kernels_{level}{'-checked' if os.environ.get('TRIPOD_SANITIZE') else ''}_"


def object_path(level: str) -> Path:
    """Where the shared object of a level lies, whether built or not; another name whenever a source or a flag changes."""
    digest = hashlib.sha256(repr(flags(level)).encode())
    for source in sorted([*ROOM.glob("*.cpp"), *ROOM.glob("*.hpp")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return ROOM / f"{_prefix(level)}{digest.hexdigest()[:12]}.so"


def build(levels: Iterable[str] | None = None, *, compiler: str | None = None) -> list[Path]:
    """Compile the levels whose objects are missing, at the same time, and remove the objects of older sources.

    Args:
        levels: which; by default all that this kind of machine can have.
        compiler: the command; by default the one that `find_compiler` finds.

    Returns:
        The objects of the levels that were asked for.

    Raises:
        RuntimeError: there is no compiler, it failed (the message ends with what it said), or the folder cannot be written to.
    """
    wanted = {level: object_path(level) for level in (buildable_levels() if levels is None else levels)}
    missing = {level: target for level, target in wanted.items() if not target.exists()}
    if not missing:
        return list(wanted.values())
    command = compiler or find_compiler()
    if command is None:
        raise RuntimeError("no C++ compiler ($CXX, g++, clang++ or c++) was found; install one, for example: apt-get install g++")
    if not os.access(ROOM, os.W_OK):
        raise RuntimeError(f"{ROOM} cannot be written to; build there as a user who may: python -m tripod.ops.kernels.cpu.build")
    sources = [str(path) for path in sorted(ROOM.glob("*.cpp"))]
    running = []
    for level, target in missing.items():
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")  # renamed when whole: two builds at once do not meet
        arguments = [*shlex.split(command), *flags(level), *sources, "-ldl", "-o", str(unfinished)]
        running.append(
            (level, target, unfinished, subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        )
    failures = []
    for level, target, unfinished, process in running:
        try:
            said = process.communicate(timeout=_TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"{process.communicate()[0]}\n(stopped after {_TIMEOUT_S:g} s)"
        if process.returncode == 0:
            unfinished.replace(target)
            for old in ROOM.glob(f"{_prefix(level)}*.so"):
                if old != target:
                    old.unlink(missing_ok=True)
        else:
            unfinished.unlink(missing_ok=True)
            failures.append(f"{command} failed for the level '{level}':\n{said.strip()[-2000:]}")
    if failures:
        raise RuntimeError("\n".join(failures))
    return list(wanted.values())


if __name__ == "__main__":
    try:
        built = build(sys.argv[1:] or None)
    except (RuntimeError, KeyError) as error:
        sys.exit(f"{error}\nusage: python -m tripod.ops.kernels.cpu.build [{' | '.join(LEVELS)} ...]")
    print(*built, sep="\n")
