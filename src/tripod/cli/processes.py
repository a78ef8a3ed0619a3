"""One command as several processes on this machine, as torchrun starts them; SIGTERM goes to all, and the worst status is the command's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

_POLL_S = 0.1


def is_first_process() -> bool:
    """Whether this process speaks for all that train one run."""
    return os.environ.get("RANK", "0") == "0"


def num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_as_processes(arguments: list[str], num_processes: int) -> int:
    """Run `python -m tripod ARGUMENTS` in each of them, and wait for all.

    When one fails, the others are ended: they would wait for it for ever.

    Returns:
        0, or the status of the one that failed first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes), "OMP_NUM_THREADS": threads}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tripod", *arguments], env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(num_processes)
    ]

    def forward(number: int, _: object) -> None:
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        failed = 0
        while any(process.poll() is None for process in running):
            failed = failed or next((process.returncode for process in running if process.returncode), 0)
            if failed:
                for process in running:
                    process.kill()
            time.sleep(_POLL_S)
        return failed or next((process.returncode for process in running if process.returncode), 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running:
            process.kill()
            process.wait()
