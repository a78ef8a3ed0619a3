"""POST /apps/NAME: an application with all of what it answers, such as citations, which no model's API has a place for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tripod.chat.wire.apps import AppBody, AppReply
from tripod.chat.wire.openai_replies import ErrorBody, Made
from tripod.chat.wire.openai_replies import Usage as UsageBody
from tripod.chat.wire.sse import DONE, frame
from tripod.messages import Usage
from tripod.sampling import SamplingParams
from tripod.serving.answers import Body, respond
from tripod.serving.apps import App, Result
from tripod.serving.asking import Asking, choices_for
from tripod.serving.bodies import read_body
from tripod.serving.generation import Choice
from tripod.serving.visit import Visit
from tripod.trace import Delta, Event


async def app_calls(request: Request) -> Response:
    """Asks an application."""
    visit = Visit.of(request)
    served = visit.served
    name = request.path_params["app"]
    app = served.apps.get(name)
    if app is None:
        raise served.unknown(name)
    body = await read_body(request, AppBody, served.config)
    asking = Asking(model=name, user=body.user, priority=body.priority, timeout=body.timeout)
    choices = await choices_for(visit, asking, app, body.to_prompt(), SamplingParams(), is_single=False)
    return await respond(request, app, choices, AppWriter(app), num_choices=1, stream=bool(body.stream))


@dataclass(slots=True)
class AppWriter:
    """Writes replies of an application."""

    app: App
    _texts: list[str] = field(default_factory=list)
    _result: Any = None

    def take(self, choice: Choice, event: Event) -> None:
        if isinstance(event, Delta):
            self._texts.append(event.text)
        elif isinstance(event, Result):
            self._result = event.value

    def chunk(self, choice: Choice, event: Event, made: Made | None) -> bytes | None:
        self.take(choice, event)
        return frame(AppReply(app=self.app.name, text=event.text).to_json()) if isinstance(event, Delta) and event.text else None

    def end(self, usage: Usage) -> bytes:
        return frame(AppReply(app=self.app.name, text="", result=self._result, usage=UsageBody.of(usage)).to_json()) + DONE

    def failed(self, error: ErrorBody) -> bytes:
        return frame(error.to_json())

    def whole(self, usage: Usage, made: Made) -> Body:
        return AppReply(app=self.app.name, text="".join(self._texts), result=self._result, usage=UsageBody.of(usage)).to_json()
