"""API keys: who may ask, and as which tenant."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tripod.errors import ConfigError

_OPEN = ("/health", "/metrics", "/openapi.json")  # for probes, scrapers and readers, which have no key


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Names of tenants and the digests of their keys; without any, everybody may ask. The keys themselves are not kept."""

    digests: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, lines: Iterable[str]) -> Self:
        """One key a line, `KEY` or `NAME KEY`; empty lines and those that begin with # are left out.

        Several keys may have one name, so that a key can be changed without a moment when none is valid.

        Raises:
            ConfigError: a line is neither.
        """
        digests = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2:
                raise ConfigError(f"API key {number} has {len(words)} words; give KEY, or NAME KEY")
            digest = hashlib.sha256(words[-1].encode()).digest()
            name = words[0] if len(words) == 2 else f"key-{digest.hex()[:8]}"
            digests.append((name, digest))
        return cls(tuple(digests))

    @classmethod
    def read(cls, keys: Iterable[str], file: Path | None) -> Self:
        """Keys from the command line or the environment, and those of a file.

        Raises:
            ConfigError: the file cannot be read, or a line of it is wrong.
        """
        lines = list(keys)
        if file is not None:
            try:
                lines += file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"cannot read the API keys of {file}: {error}; give a text file with KEY or NAME KEY in each line"
                ) from error
        found = cls.of(lines)
        if file is not None and not found.digests:
            raise ConfigError(f"{file} holds no API key, which would let everybody in; write KEY or NAME KEY in a line")
        return found

    def tenant(self, authorization: str | None) -> str | None:
        """Whose key an `Authorization` header bears; None if nobody's. Takes the same time for any key."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for name, known in self.digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found if scheme.lower() == "bearer" else None

    def guards(self, path: str) -> bool:
        """Whether a path needs a key."""
        return bool(self.digests) and not any(path == open_path or path.startswith(f"{open_path}/") for open_path in _OPEN)
