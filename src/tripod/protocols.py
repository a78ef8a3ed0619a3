"""Every extension point, on one page. What any `ChatModel` must do is a test suite in `tripod.testing`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from tripod.documents import Document, Passage, SourceState, StoredSource, StoreStats
    from tripod.filters import Where
    from tripod.messages import Content, Message, Reply, ToolSpec, Usage
    from tripod.prompts import Prompt
    from tripod.sampling import SamplingParams
    from tripod.trace import Event

    Vectors: TypeAlias = NDArray[numpy.float32]


class ChatModel(Protocol):
    """Answers a prompt. Implemented by the local engine, an HTTP client, and a script."""

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply: ...

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncIterator[Event]: ...


class Embedder(Protocol):
    """Turns texts into unit vectors. Vectors of embedders with different fingerprints are never compared."""

    @property
    def fingerprint(self) -> str: ...  # names the weights, the pooling and the longest input

    @property
    def dim(self) -> int: ...

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors: ...  # [N, dim]


class Reranker(Protocol):
    """Scores passages against a question, reading both together; larger is better."""

    async def rerank(self, question: str, passages: Sequence[Passage]) -> list[float]: ...


class StoreReader(Protocol):
    """Finds passages. Every call sees the store as it was at one moment."""

    async def stats(self) -> StoreStats | None: ...  # None: nothing was ever written

    async def sources(self, where: Where | None = None) -> dict[str, SourceState]: ...  # in the order of their names

    async def document(self, source: str) -> Document | None: ...

    async def read(self, source: str) -> StoredSource | None: ...

    async def search(
        self, text: str | None, vector: Vectors | None, *, k: int, where: Where | None = None
    ) -> list[Passage]: ...  # BM25 for a text, dot product for a vector [dim], fused for both; StoreError if nothing was ever written

    async def count(self, words: Sequence[str]) -> list[int]: ...  # for each word the number of passages that hold it


class StoreWriter(Protocol):
    """Changes sources. `replace` is one transaction: all of a source, or none of it."""

    async def replace(
        self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState
    ) -> None: ...  # vectors [len(passages), dim], or None: found by words only

    async def remove(self, source: str) -> None: ...

    async def settle(self) -> None: ...  # after many writes: bring up to date what makes large searches fast


class Store(StoreReader, StoreWriter, Protocol):
    """Keeps sources with their passages and vectors. What any store must do is `tripod.testing.store.StoreContract`."""

    async def check(self) -> list[str]: ...  # what is wrong with it, a sentence each; empty: all is well

    async def repair(self) -> None: ...  # makes anew what can be made of sources and passages

    async def aclose(self) -> None: ...


class Converter(Protocol):
    """Reads one kind of file into a document with exact offsets."""

    @property
    def suffixes(self) -> frozenset[str]: ...  # lower case, with the dot

    def convert(self, content: bytes, source: str) -> Document: ...  # raises ConversionError with the reason


class Splitter(Protocol):
    """Cuts a document into passages. Law: `document.text[passage.start:passage.end] == passage.text`."""

    @property
    def fingerprint(self) -> str: ...  # names the rule and its sizes: passages of other rules are not mixed in one index

    def split(self, document: Document) -> list[Passage]: ...  # in the order of their starts; pure


class ToolContext(Protocol):
    """What a tool may know of the run that calls it."""

    @property
    def deps(self) -> Any: ...  # what the application gave the run, such as a connection or the user who asks

    @property
    def messages(self) -> Sequence[Message]: ...  # the conversation up to the call

    @property
    def spend(self) -> Callable[[Usage], None]: ...  # what the tool itself asked of models counts as the run's


class Tool(Protocol):
    """Something that a model may ask for by name."""

    @property
    def spec(self) -> ToolSpec: ...

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Content: ...  # what it raises, the model is told
