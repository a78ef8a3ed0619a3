"""One family of errors. Each child is a different reaction, not a different place of origin."""

from __future__ import annotations

from typing import Any


class TripodError(Exception):
    """Whatever Tripod raises on purpose. The message says what was given, what was expected and what to do."""


class ConfigError(TripodError):
    """Fix the call: a value, a file or a combination that cannot work."""


class ShapeError(ConfigError):
    """A tensor does not have the shape that the function states."""


class MissingExtraError(ConfigError):
    """An optional package is needed and not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}', which is not installed; run: pip install 'tripod[{extra}]'")
        self.package, self.extra, self.purpose = package, extra, purpose


class CheckpointError(ConfigError):
    """A checkpoint cannot be used: absent, truncated, of an unknown architecture, or with the wrong tensors."""


class TokenizerError(ConfigError):
    """A tokenizer cannot be read, or does not fit the model beside it."""


class DatasetError(ConfigError):
    """Training data cannot be used: absent, truncated, of another format, or not what its list of hashes says."""


class TrainingError(TripodError):
    """A run cannot go on: its loss or its gradients are not numbers any more. The checkpoints before are whole."""


class StoreError(TripodError):
    """An index file cannot be opened, is not one of ours, or was made by another embedder or pipeline."""


class ConversionError(TripodError):
    """One document could not be read. A sync lists it as failed and goes on."""


class CitationError(TripodError):
    """An answer cites a passage that was not given, or quotes words that are not in it."""


class ToolError(TripodError):
    """A tool cannot do what it was asked; the model is told the message, and may ask otherwise."""


class AgentError(TripodError):
    """A run ended without an answer: its turns or its budget are used up, or the model keeps making mistakes. `run` has what was done."""

    def __init__(self, message: str, *, run: Any = None) -> None:
        super().__init__(message)
        self.run = run


class FlowError(TripodError):
    """A flow cannot go on: a step returned what it does not promise, or a loop did not end within its bound."""


class JournalError(TripodError):
    """An execution cannot be begun or gone on with: what the journal holds, or who else works on it, stands against it."""


class RequestError(TripodError):
    """This request fails, the others go on. Over HTTP: 4xx, with `param` naming the field at fault."""

    status = 400
    code = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(RequestError):
    """Prompt and answer together do not fit the model or the KV pool; raised before any work."""

    code = "context_length_exceeded"


class NotFoundError(RequestError):
    """The request names a model or a thing that is not here."""

    status = 404
    code = "not_found"


class OverloadedError(RequestError):
    """The queue is full; ask again after `retry_after_s` seconds."""

    status = 429
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelTimeoutError(TripodError):
    """A model did not answer within the time it was given."""


class DeadlineError(ModelTimeoutError):
    """A request was not finished by the deadline that it set itself. Over HTTP: 504."""

    status = 504
    code = "deadline_exceeded"


class EngineError(TripodError):
    """The engine, or a server that we called, failed. Over HTTP: 5xx."""
