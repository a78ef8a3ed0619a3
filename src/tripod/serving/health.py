"""Whether the server is alive, and whether it wants requests. Alive means that what runs makes progress."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tripod.chat.wire.openai_replies import Health
from tripod.serving.served import Served


async def live(request: Request) -> Response:
    """GET /health/live: 503 when only a restart helps: the engine has ended, or makes no progress."""
    served = Served.of(request)
    trouble = served.progress.trouble()
    return _answer(trouble)


async def ready(request: Request) -> Response:
    """GET /health/ready and /health: 503 when requests are not taken: for the reasons of `live`, and while the server drains."""
    served = Served.of(request)
    trouble = served.progress.trouble()
    if trouble is None and served.lifecycle.is_draining:
        trouble = f"stopping; {served.lifecycle.num_open} requests are being finished"
    return _answer(trouble)


def _answer(trouble: str | None) -> Response:
    return JSONResponse(Health(status=trouble or "ok").to_json(), status_code=200 if trouble is None else 503)
