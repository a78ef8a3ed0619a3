"""The process around the app: a socket, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from tripod.errors import ConfigError


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


async def serve(app: Starlette, listener: socket.socket, *, drain_s: float = 30.0) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets running requests finish for up to `drain_s` seconds; a second Ctrl-C does not wait.

    Only in the main thread are signals listened to; elsewhere, cancel the task.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(drain_s)),
        timeout_keep_alive=30,
    )
    server = _Server(config)
    with listener:  # closed last: an event loop that still reads from a closed socket misses the next one with its number
        try:
            await server.serve(sockets=[listener])
        except asyncio.CancelledError:
            await server.shutdown(sockets=[listener])
            raise


class _Server(uvicorn.Server):
    """uvicorn ends a stopped server by raising the signal again; a clean stop is not an error here."""

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
