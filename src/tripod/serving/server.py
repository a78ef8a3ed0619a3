"""The process around the app: a socket, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from tripod.errors import ConfigError
from tripod.serving.lifecycle import Lifecycle
from tripod.serving.protocol import Connection
from tripod.serving.served import Served

_log = logging.getLogger(__name__)

_FAREWELL_S = 5  # to write the last bytes of what ended
_SWITCH_INTERVAL_S = 0.0005  # the engine's thread gives up the interpreter so often; with Python's 5 ms a refusal would take four of them


def bind(host: str, port: int) -> socket.socket:
    """Takes the port, before anything slow is loaded. Nobody can connect until `serve` listens.

    Args:
        port: 0 takes a free one; `bind(...).getsockname()[1]` says which.

    Raises:
        ConfigError: the port is in use, is not allowed, or the host is not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(
            f"cannot serve on {host}:{port}: there is no port {port}; choose one from 1024 to 65535 with --port (0 takes a free one)"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"cannot serve on {host}:{port}: {error}; give an address of this machine, such as 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections to time out
        listener.bind(address)
    except OSError as error:
        listener.close()
        match error.errno:
            case errno.EADDRINUSE:
                message = (
                    f"port {port} on {host} is in use by another program; stop it, or choose another port with --port (0 takes a free one)"
                )
            case errno.EACCES:
                message = f"port {port} needs privileges that this process does not have; choose one above 1023 with --port"
            case _:
                message = f"cannot serve on {host}:{port}: {error.strerror}; give an address of this machine with --host, such as 127.0.0.1"
        raise ConfigError(message) from error
    return listener


async def serve(app: Starlette, listener: socket.socket, *, drain_s: float = 30.0, grace_s: float = 0.0) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains; a second signal does not wait.

    Draining: readiness turns false at once, while the port stays open, so that balancers see it; what is new is answered
    with 503; what was admitted goes on for up to `drain_s` seconds. What is not finished then ends with an error, a stream
    with an error event: no socket is cut.

    Only in the main thread are signals listened to; elsewhere, cancel the task.

    Args:
        app: what `build_app` made.
        listener: what `bind` returned.
        drain_s: the most that admitted requests may still take.
        grace_s: the least that the port stays open after readiness turned false, for balancers that look now and then.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # What is here now stays: torch alone is a million objects, and a full collection that walks them stops every thread for 0.2 s.
    gc.collect()
    gc.freeze()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        http=Connection,
        timeout_graceful_shutdown=_FAREWELL_S,
        timeout_keep_alive=30,
    )
    server = _Server(config, Served.in_app(app).lifecycle, drain_s=drain_s, grace_s=grace_s)
    with listener:  # closed last: an event loop that still reads from a closed socket misses the next one with its number
        try:
            await server.serve(sockets=[listener])
        except asyncio.CancelledError:
            await server.drain()
            await server.shutdown(sockets=[listener])
            raise


class _Server(uvicorn.Server):
    """uvicorn closes the port first and waits then; and it ends a stopped server by raising the signal again."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, *, drain_s: float, grace_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_s = drain_s
        self._grace_s = grace_s
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain_and_stop())
        else:  # somebody is in a hurry
            self._lifecycle.cut()

    async def _drain_and_stop(self) -> None:
        await self.drain()
        self.should_exit = True

    async def drain(self) -> None:
        """Returns when no request is open any more."""
        self._lifecycle.begin_drain(retry_after_s=max(1.0, self._drain_s))
        grace = asyncio.create_task(asyncio.sleep(self._grace_s))
        if not await self._lifecycle.wait_idle(self._drain_s):
            _log.warning("%d requests were not finished after %g s and end with an error", self._lifecycle.num_open, self._drain_s)
            self._lifecycle.cut()
            await self._lifecycle.wait_idle(_FAREWELL_S)
        await grace

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        installed: list[signal.Signals] = []
        for name in (signal.SIGINT, signal.SIGTERM):
            # Not in a thread, and not on Windows' default loop: there the caller stops us.
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(name, self.handle_exit, name, None)
                installed.append(name)
        try:
            yield
        finally:
            for name in installed:
                loop.remove_signal_handler(name)
