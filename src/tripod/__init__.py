"""Tripod: train, serve and ask language models, in one package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tripod.agents.agent import Agent as Agent
    from tripod.agents.tool import tool as tool
    from tripod.bridge import iterate as iterate
    from tripod.bridge import run as run
    from tripod.chat.model import Model as Model
    from tripod.documents import Document as Document
    from tripod.documents import Passage as Passage
    from tripod.engine.engine import Engine as Engine
    from tripod.engine.engine import EngineConfig as EngineConfig
    from tripod.errors import TripodError as TripodError
    from tripod.flows.durable import durable as durable
    from tripod.flows.flow import Flow as Flow
    from tripod.flows.journal import Journal as Journal
    from tripod.messages import Message as Message
    from tripod.prompts import Prompt as Prompt
    from tripod.protocols import Tool as Tool
    from tripod.rag.answer import Answer as Answer
    from tripod.rag.ask import ask as ask
    from tripod.retrieval.index import Index as Index
    from tripod.sampling import SamplingParams as SamplingParams

__version__ = "0.1.0"

_PUBLIC = {
    "Agent": "tripod.agents.agent",
    "Answer": "tripod.rag.answer",
    "Document": "tripod.documents",
    "Engine": "tripod.engine.engine",
    "EngineConfig": "tripod.engine.engine",
    "Flow": "tripod.flows.flow",
    "Index": "tripod.retrieval.index",
    "Journal": "tripod.flows.journal",
    "Message": "tripod.messages",
    "Model": "tripod.chat.model",
    "Passage": "tripod.documents",
    "Prompt": "tripod.prompts",
    "SamplingParams": "tripod.sampling",
    "Tool": "tripod.protocols",
    "TripodError": "tripod.errors",
    "ask": "tripod.rag.ask",
    "durable": "tripod.flows.durable",
    "iterate": "tripod.bridge",
    "run": "tripod.bridge",
    "tool": "tripod.agents.tool",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tripod' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
