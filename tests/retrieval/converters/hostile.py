"""A converter that does what the worst files make readers do."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

from tripod.documents import Document
from tripod.errors import MissingExtraError


class Hostile:
    """Obeys its file: `hang`, `loop`, `crash`, `exit`, `eat`, `print`, `raise`, `miss`, `pid`."""

    suffixes = frozenset({".bad"})

    def convert(self, content: bytes, source: str) -> Document:
        match content:
            case b"hang":
                time.sleep(3600)
            case b"loop":  # within C, which no signal handler of Python's interrupts
                re.match(r"(a+)+$", "a" * 60 + "b")
            case b"crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"exit":
                os._exit(7)
            case b"eat":
                _ = ["x" * (1 << 30) for _ in range(1 << 10)]  # refused at the first, whose pages a busy machine would take long to fill
            case b"print":
                print('{"document": "forged"}')
                sys.stdout.flush()
            case b"raise":
                raise KeyError("no such key")
            case b"miss":
                raise MissingExtraError("hostile", "documents", "reading a .bad")
        return Document(source=source, text=f"{content.decode()} {os.getpid()}", metadata={"format": "bad"})
