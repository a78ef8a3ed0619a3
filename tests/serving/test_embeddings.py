"""/v1/embeddings through the official client and by the letter. The encoder here is small and real: letters counted."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy
import openai
import pytest
import torch
from numpy.typing import NDArray

from tests.engine.test_encode import write_encoder
from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import NAME
from tripod.engine.encode import Encoder
from tripod.engine.engine import Engine
from tripod.serving.app import build_app

ENCODER = "letters"


class LetterCounter:
    """A text as how often each letter stands in it, scaled to length 1; a letter is a token."""

    dim = 26
    max_tokens = 100

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def encode(self, texts: Sequence[str]) -> NDArray[numpy.float32]:
        counts = numpy.array([[text.count(chr(ord("a") + i)) for i in range(26)] for text in texts], dtype=numpy.float32)
        return counts / numpy.maximum(numpy.linalg.norm(counts, axis=1, keepdims=True), 1e-6)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[LiveServer]:
    with live_server(build_app(engine, embedder=LetterCounter(), embedder_name=ENCODER)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        yield client


def test_texts_come_back_as_the_encoders_vectors_in_order(client: openai.OpenAI) -> None:
    texts = ["aab", "zebra", "b"]
    response = client.embeddings.create(model=ENCODER, input=texts)  # the SDK asks for base64 and decodes it
    assert [entry.index for entry in response.data] == [0, 1, 2]
    assert response.data[0].embedding[:2] == pytest.approx([2 / 5**0.5, 1 / 5**0.5], rel=1e-6)  # float32
    assert numpy.array([entry.embedding for entry in response.data], dtype=numpy.float32).tolist() == LetterCounter().encode(texts).tolist()
    assert response.usage.prompt_tokens == response.usage.total_tokens == 3 + 5 + 1
    assert response.model == ENCODER


def test_one_text_may_come_alone(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model=ENCODER, input="abc", encoding_format="float", dimensions=26).data[0].embedding) == 26


def test_numbers_and_base64_hold_the_same_vector(server: LiveServer) -> None:
    def raw(form: str) -> object:
        body = {"model": ENCODER, "input": "zebra", "encoding_format": form}
        reply = httpx.post(f"{server.url}/embeddings", json=body, trust_env=False).json()
        assert set(reply) == {"object", "data", "model", "usage"}
        assert set(reply["data"][0]) == {"object", "index", "embedding"}
        return reply["data"][0]["embedding"]

    encoded = raw("base64")
    assert isinstance(encoded, str)
    assert numpy.frombuffer(base64.b64decode(encoded), dtype="<f4").tolist() == raw("float")


def test_what_cannot_be_embedded_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"input\[1\] has 101 tokens; 'letters' reads at most 100") as caught:
        client.embeddings.create(model=ENCODER, input=["a", "b" * 101])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length") as caught:
        client.embeddings.create(model=ENCODER, input=[1, 2, 3])
    assert caught.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="dimensions=7") as caught:
        client.embeddings.create(model=ENCODER, input="a", dimensions=7)
    assert caught.value.param == "dimensions"


def test_each_model_does_its_own_work(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME, ENCODER]
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError, match=r"'tiny' writes text and embeds nothing; ask for 'letters'"):
        client.embeddings.create(model=NAME, input="a")
    with pytest.raises(openai.BadRequestError, match="is an encoder"):
        client.completions.create(model=ENCODER, prompt="a")


def test_an_encoder_may_be_served_alone() -> None:
    with live_server(build_app(None, embedder=LetterCounter(), embedder_name=ENCODER)) as server:
        with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [ENCODER]
            assert client.embeddings.create(model=ENCODER, input="a").usage.prompt_tokens == 1
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model=NAME, prompt="a")
        assert httpx.get(f"{server.root}/metrics", trust_env=False).status_code == 200


class SlowCounter(LetterCounter):
    """Each piece takes a while, as those of a real encoder do."""

    def encode(self, texts: Sequence[str]) -> NDArray[numpy.float32]:
        time.sleep(0.1)
        return super().encode(texts)


def test_what_cannot_be_waited_for_is_told_so_at_its_next_piece() -> None:
    app = build_app(None, embedder=SlowCounter(), embedder_name=ENCODER)
    with live_server(app) as server:
        server.loop.call_soon_threadsafe(lambda: server.loop.call_later(0.3, app.state.served.lifecycle.cut))
        texts = ["a" * 100] * 1000  # five to a piece: 20 s
        response = httpx.post(f"{server.url}/embeddings", json={"model": ENCODER, "input": texts}, trust_env=False, timeout=30.0)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "shutting_down"


def test_a_real_encoder_serves_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = write_encoder(tmp_path)
    texts = ["a b c", "the quick brown fox", "q"]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True, show_progress_bar=False)
    app = build_app(None, embedder=Encoder.load(folder, torch.float32), embedder_name="bert")
    with live_server(app) as server, openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        response = client.embeddings.create(model="bert", input=texts)
        with pytest.raises(openai.BadRequestError, match="'bert' reads at most 16; split the text"):
            client.embeddings.create(model="bert", input="a " * 40)
    numpy.testing.assert_allclose([entry.embedding for entry in response.data], expected, atol=1e-5)  # float32, other order of sums
