"""A real server on a loopback port, in a thread of its own with its own event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import uvicorn
from starlette.applications import Starlette

from tripod.serving.server import bind, serve

T = TypeVar("T")


class LiveServer:
    """Where the server is, and a way into its event loop."""

    def __init__(self, app: Starlette) -> None:
        self._listener = bind("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        self._app = app
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="live-server")

    def _serve(self) -> None:
        is_ours = hasattr(self._app.state, "served")
        serving = serve(self._app, self._listener, drain_s=1.0) if is_ours else _serve_plainly(self._app, self._listener)
        self._task = self.loop.create_task(serving)
        try:
            self.loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline and self._thread.is_alive():
            try:
                if httpx.get(f"{self.root}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the server did not become ready")

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=60.0)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=20.0)
        assert not self._thread.is_alive()


async def _serve_plainly(app: Starlette, listener: socket.socket) -> None:
    """An app that `build_app` did not make, as any program would serve it."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1))
    with listener:
        try:
            await server.serve(sockets=[listener])
        except asyncio.CancelledError:
            await server.shutdown(sockets=[listener])
            raise


@contextmanager
def live_server(app: Starlette) -> Iterator[LiveServer]:
    server = LiveServer(app)
    server.start()
    try:
        yield server
    finally:
        server.stop()
