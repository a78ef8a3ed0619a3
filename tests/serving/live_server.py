"""A real server on a loopback port, in a thread of its own with its own event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
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
        self._task = self.loop.create_task(serve(self._app, self._listener, drain_s=1.0))
        try:
            self.loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
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


@contextmanager
def live_server(app: Starlette) -> Iterator[LiveServer]:
    server = LiveServer(app)
    server.start()
    try:
        yield server
    finally:
        server.stop()
