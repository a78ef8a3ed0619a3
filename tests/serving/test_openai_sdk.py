"""The official openai client, unmodified, against the server. What it should say comes from the engine, asked without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving.live_server import LiveServer
from tests.serving.tiny import MAX_CONTEXT, NAME
from tripod.engine.engine import Engine
from tripod.messages import Reply
from tripod.sampling import SamplingParams

ONE_TURN: Any = [{"role": "user", "content": "Say something."}]
CHATML = "<|im_start|>user\nSay something.<|im_end|>\n<|im_start|>assistant\n"  # written out by hand from the ChatML convention


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        yield client


def generated(engine: Engine, prompt: str | list[int], **sampling: Any) -> Reply:
    return asyncio.run(engine.generate(prompt, SamplingParams(**sampling)))


# --- completions


def test_a_completion_is_what_the_engine_says(client: openai.OpenAI, engine: Engine) -> None:
    expected = generated(engine, "Once upon", temperature=0.0, max_tokens=40)
    completion = client.completions.create(model=NAME, prompt="Once upon", temperature=0, max_tokens=40)
    assert completion.choices[0].text == expected.text
    assert completion.choices[0].finish_reason == expected.finish_reason
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (9, expected.usage.completion_tokens)
    assert completion.model == NAME


def test_a_completion_without_max_tokens_has_sixteen(client: openai.OpenAI) -> None:
    completion = client.completions.create(model=NAME, prompt="Once", temperature=0, extra_body={"ignore_eos": True})
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16


def test_a_streamed_completion_adds_up_to_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt="Once", temperature=0, max_tokens=48, logprobs=3)
    chunks = list(
        client.completions.create(
            model=NAME, prompt="Once", temperature=0, max_tokens=48, logprobs=3, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert len(pieces) > 10
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [whole.choices[0].finish_reason]
    expected = whole.choices[0].logprobs
    assert expected is not None
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        added = [entry for piece in pieces if piece.logprobs is not None for entry in getattr(piece.logprobs, field)]
        assert added == getattr(expected, field), field
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_each_shape_of_prompt_gives_the_same_answer(client: openai.OpenAI) -> None:
    ids = list(b"Once")  # one token a byte
    shapes: list[Any] = ["Once", ["Once"], ids, [ids]]
    texts = [client.completions.create(model=NAME, prompt=shape, temperature=0, max_tokens=20).choices[0].text for shape in shapes]
    assert len(set(texts)) == 1


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI, engine: Engine) -> None:
    prompts = ["Once", "upon a", "time there was"]
    completion = client.completions.create(model=NAME, prompt=prompts, temperature=0, max_tokens=12)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert [choice.text for choice in completion.choices] == [generated(engine, p, temperature=0.0, max_tokens=12).text for p in prompts]
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 4 + 6 + 14


def test_n_answers_draw_from_following_seeds_and_count_the_prompt_once(client: openai.OpenAI, engine: Engine) -> None:
    completion = client.completions.create(model=NAME, prompt="Once", n=3, seed=5, max_tokens=12)
    expected = [generated(engine, "Once", seed=seed, max_tokens=12) for seed in (5, 6, 7)]
    assert [choice.text for choice in completion.choices] == [reply.text for reply in expected]
    assert len({choice.text for choice in completion.choices}) == 3
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 4
    assert completion.usage.completion_tokens == sum(reply.usage.completion_tokens for reply in expected)


def test_streams_of_n_answers_interleave_and_stay_apart(client: openai.OpenAI) -> None:
    body: Any = {"model": NAME, "prompt": "Once", "n": 3, "seed": 5, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    whole = client.completions.create(**body)
    texts = ["", "", ""]
    order: list[int] = []
    for chunk in client.completions.create(stream=True, **body):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            order.append(choice.index)
    assert texts == [choice.text for choice in whole.choices]
    assert order != sorted(order)


def test_a_seed_repeats_the_answer(client: openai.OpenAI) -> None:
    texts = {client.completions.create(model=NAME, prompt="Once", seed=seed, max_tokens=24).choices[0].text for seed in (11, 11, 12)}
    assert len(texts) == 2


def test_a_stop_string_is_found_across_tokens_and_left_out(client: openai.OpenAI) -> None:
    text = client.completions.create(model=NAME, prompt="Once", temperature=0, max_tokens=48).choices[0].text
    stop = text[9:13]  # four characters, so at least four tokens of one byte
    completion = client.completions.create(model=NAME, prompt="Once", temperature=0, max_tokens=48, stop=["never this", stop])
    assert completion.choices[0].text == text[: text.index(stop)]
    assert completion.choices[0].finish_reason == "stop"
    streamed = client.completions.create(model=NAME, prompt="Once", temperature=0, max_tokens=48, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text[: text.index(stop)]


def test_logprobs_of_a_completion_are_the_engines(client: openai.OpenAI, engine: Engine) -> None:
    expected = generated(engine, "Once", temperature=0.0, max_tokens=10, logprobs=3).logprobs
    logprobs = client.completions.create(model=NAME, prompt="Once", temperature=0, max_tokens=10, logprobs=3).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == pytest.approx([entry.logprob for entry in expected], abs=1e-5)  # batches may differ in float32
    assert logprobs.top_logprobs is not None
    assert logprobs.tokens is not None
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs or [], logprobs.top_logprobs, strict=True):
        assert len(top) == 3
        assert max(top.values()) == logprob == top[token]  # greedy: the chosen token is the best


def test_text_offsets_say_where_each_token_begins(client: openai.OpenAI) -> None:
    choice = client.completions.create(model=NAME, prompt="Ünd", temperature=0, max_tokens=32, logprobs=0, echo=True).choices[0]
    assert choice.logprobs is not None
    offsets = choice.logprobs.text_offset
    assert offsets is not None
    assert offsets[:5] == [0, 0, 1, 2, 3]  # Ü has two bytes, and so two tokens
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.tokens[:4] == ["bytes:\\xc3", "bytes:\\x9c", "n", "d"]
    for token, offset in zip(choice.logprobs.tokens, offsets, strict=True):
        if not token.startswith(("bytes:", "<|")):
            assert choice.text[offset] == token


def test_echo_repeats_the_prompt(client: openai.OpenAI) -> None:
    plain = client.completions.create(model=NAME, prompt="Once", temperature=0, max_tokens=12).choices[0].text
    for prompt in ("Once", list(b"Once")):
        body: Any = {"model": NAME, "prompt": prompt, "temperature": 0, "max_tokens": 12, "echo": True}
        assert client.completions.create(**body).choices[0].text == "Once" + plain
        assert "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **body)) == "Once" + plain


def test_echo_with_logprobs_scores_the_prompt_as_the_engine_does(client: openai.OpenAI, engine: Engine) -> None:
    prompt = list(b"The quick brown fox")
    expected = asyncio.run(engine.score(prompt[:1], prompt[1:]))
    choice = client.completions.create(model=NAME, prompt=prompt, max_tokens=0, echo=True, logprobs=1, temperature=0).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert choice.text == "The quick brown fox"
    assert logprobs.tokens == list("The quick brown fox")
    assert logprobs.text_offset == list(range(19))
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(expected.logprobs, abs=1e-5)  # batches may differ in float32
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] is None
    is_greedy = all(max(top.values()) == own for top, own in zip(logprobs.top_logprobs[1:], logprobs.token_logprobs[1:], strict=True))
    assert is_greedy == expected.is_greedy


def test_lm_eval_reads_a_continuation_between_prompt_and_one_generated_token(client: openai.OpenAI, engine: Engine) -> None:
    # lm-eval's local-completions: echo, max_tokens=1, logprobs=1, and token_logprobs[num_context:-1] summed.
    context, continuation = list(b"The quick brown"), list(b" fox")
    expected = asyncio.run(engine.score(context, continuation))
    body: Any = {"model": NAME, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234, "temperature": 0}
    completion = client.completions.create(prompt=[context + continuation, context + continuation], **body)
    for choice in completion.choices:
        assert choice.logprobs is not None
        values = (choice.logprobs.token_logprobs or [])[len(context) : -1]
        assert sum(value for value in values if value is not None) == pytest.approx(expected.total, abs=1e-4)


def test_an_echoed_prompt_of_one_token_stands_before_the_answer(client: openai.OpenAI) -> None:
    body: Any = {"model": NAME, "prompt": "a", "max_tokens": 2, "logprobs": 1, "temperature": 0, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(**body).choices[0].logprobs
    both = client.completions.create(**body, echo=True).choices[0].logprobs
    assert both.tokens == ["a", *answer.tokens]
    assert both.token_logprobs == [None, *answer.token_logprobs]
    assert both.text_offset == [0, *(1 + offset for offset in answer.text_offset)]


def test_a_streamed_echo_with_logprobs_adds_up_too(client: openai.OpenAI) -> None:
    body: Any = {"model": NAME, "prompt": "Once", "max_tokens": 8, "echo": True, "logprobs": 2, "temperature": 0}
    whole = client.completions.create(**body).choices[0]
    pieces = [chunk.choices[0] for chunk in client.completions.create(stream=True, **body)]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.logprobs is not None
    added = [value for piece in pieces if piece.logprobs for value in piece.logprobs.token_logprobs or []]
    assert added == whole.logprobs.token_logprobs


# --- chat


def test_a_chat_answer_continues_the_rendered_template(client: openai.OpenAI, engine: Engine) -> None:
    expected = generated(engine, CHATML, temperature=0.0, max_tokens=30)
    completion = client.chat.completions.create(model=NAME, messages=ONE_TURN, temperature=0, max_tokens=30)
    assert completion.choices[0].message.content == expected.text
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == expected.finish_reason
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == expected.usage.prompt_tokens
    assert completion.usage.total_tokens == expected.usage.total_tokens
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 32  # of 33, two blocks that the question before left


def test_a_streamed_chat_adds_up_to_the_whole_one(client: openai.OpenAI) -> None:
    body: Any = {"model": NAME, "messages": ONE_TURN, "temperature": 0, "max_tokens": 40, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **body))
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert pieces[0].delta.role == "assistant"
    assert all(piece.delta.role is None for piece in pieces[1:])
    assert pieces[-1].finish_reason == whole.choices[0].finish_reason
    expected = whole.choices[0].logprobs
    assert expected is not None
    added = [entry for piece in pieces if piece.logprobs is not None for entry in piece.logprobs.content or []]
    assert added == expected.content
    assert chunks[-1].usage == whole.usage


def test_logprobs_of_a_chat_carry_bytes_and_alternatives(client: openai.OpenAI, engine: Engine) -> None:
    expected = generated(engine, CHATML, temperature=0.0, max_tokens=10, logprobs=3).logprobs
    logprobs = client.chat.completions.create(
        model=NAME, messages=ONE_TURN, temperature=0, max_tokens=10, logprobs=True, top_logprobs=3
    ).choices[0].logprobs  # fmt: skip
    assert logprobs is not None
    content = logprobs.content or []
    assert [bytes(entry.bytes or []) for entry in content] == [entry.token_bytes for entry in expected]
    assert [entry.logprob for entry in content] == pytest.approx([entry.logprob for entry in expected], abs=1e-5)
    assert [[bytes(t.bytes or []) for t in entry.top_logprobs] for entry in content] == [[t.token_bytes for t in e.top] for e in expected]


def test_n_chat_answers_each_have_their_message(client: openai.OpenAI) -> None:
    body: Any = {"model": NAME, "messages": ONE_TURN, "n": 3, "seed": 1, "max_tokens": 12}
    whole = client.chat.completions.create(**body)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **body):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3


def test_a_reply_of_the_sdk_can_be_sent_back_as_history(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model=NAME, messages=ONE_TURN, max_tokens=5, seed=1)
    history: Any = [*ONE_TURN, first.choices[0].message, {"role": "user", "content": "More."}]
    assert client.chat.completions.create(model=NAME, messages=history, max_tokens=5).choices[0].message.role == "assistant"


def test_content_may_come_as_text_parts(client: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "something."}]}]
    answers = [
        client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=12).choices[0].message.content
        for messages in (ONE_TURN, parts)
    ]
    assert answers[0] == answers[1]


def test_a_chat_without_max_tokens_may_fill_the_context(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model=NAME, messages=ONE_TURN, temperature=0, extra_body={"ignore_eos": True})
    assert completion.usage is not None
    assert completion.usage.total_tokens == MAX_CONTEXT
    assert completion.choices[0].finish_reason == "length"


def test_harmless_fields_are_accepted(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=NAME, messages=ONE_TURN, max_completion_tokens=2, user="me", metadata={"run": "1"}, store=False, service_tier="auto",
        response_format={"type": "text"}, tools=[], parallel_tool_calls=True, modalities=["text"],
    )  # fmt: skip
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 2


# --- many at once


def test_sixteen_at_once_say_what_each_says_alone(server: LiveServer, engine: Engine) -> None:
    prompts = [f"{i} bottles of {'beer' * (i % 5)}" for i in range(16)]
    expected = [generated(engine, prompt, temperature=0.0, max_tokens=32).text for prompt in prompts]

    async def one(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(model=NAME, prompt=prompt, temperature=0, max_tokens=32, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in prompts))

    assert asyncio.run(all_at_once()) == expected


# --- models and errors


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).object == "model"
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        client.models.retrieve("no/such")


def test_an_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist here; this server has: 'tiny'") as caught:
        client.chat.completions.create(model="gpt-9", messages=ONE_TURN)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused_before_any_work(client: openai.OpenAI, engine: Engine, stream: bool) -> None:
    steps = engine.stats().steps
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt=["fits", "x" * MAX_CONTEXT], max_tokens=1, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert str(MAX_CONTEXT) in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=ONE_TURN, max_tokens=MAX_CONTEXT, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert engine.stats().steps == steps


BAD_COMPLETIONS: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": "0.5"}),
    ("top_p", {"top_p": 0}),
    ("max_tokens", {"max_tokens": -1}),
    ("max_tokens", {"max_tokens": 0}),
    ("n", {"n": 0}),
    ("n", {"n": 10_000_000}),
    ("best_of", {"best_of": 3}),
    ("suffix", {"suffix": "end"}),
    ("logprobs", {"logprobs": 1000}),
    ("stop", {"stop": [""]}),
    ("stop", {"stop": 5}),
    ("seed", {"seed": 2**70}),
    ("logit_bias", {"logit_bias": {"dog": 1}}),
    ("logit_bias", {"logit_bias": {"99999": 1}}),
    ("logit_bias", {"logit_bias": {"5": 101}}),
    ("stop_token_ids", {"extra_body": {"stop_token_ids": [99999]}}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": [[]]}),
    ("prompt", {"prompt": [1, "a"]}),
    ("prompt", {"prompt": [-1]}),
    ("prompt", {"prompt": [99999]}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("temprature", {"extra_body": {"temprature": 1}}),
]


@pytest.mark.parametrize(("param", "change"), BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
def test_a_bad_parameter_of_a_completion_is_named(client: openai.OpenAI, param: str, change: dict[str, Any]) -> None:
    body: Any = {"model": NAME, "prompt": "Once", **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**body)
    assert caught.value.param == param
    assert param in caught.value.message
    assert caught.value.type == "invalid_request_error"


BAD_CHATS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": []}),
    ("messages", {"messages": "hello"}),
    ("messages[0].role", {"messages": [{"role": "robot", "content": "x"}]}),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    ("messages[1].tool_call_id", {"messages": [*ONE_TURN, {"role": "tool", "content": "4"}]}),
    ("tool_choice", {"tool_choice": "required"}),
    ("response_format", {"response_format": {"type": "json_schema"}}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 50}),
    ("max_completion_tokens", {"max_completion_tokens": 0}),
    ("max_completion_tokens", {"max_completion_tokens": 4, "max_tokens": 5}),
    ("audio", {"audio": {"voice": "alloy", "format": "wav"}}),
    ("modalities[0]", {"modalities": ["audio"]}),
    ("reasoning_effort", {"reasoning_effort": "high"}),
    ("prediction", {"prediction": {"type": "content", "content": "x"}}),
    ("web_search_options", {"web_search_options": {"search_context_size": "low"}}),
    ("store", {"store": True}),
    ("service_tier", {"service_tier": "priority"}),
]


@pytest.mark.parametrize(("param", "change"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_a_bad_or_unsupported_parameter_of_a_chat_is_named(client: openai.OpenAI, param: str, change: dict[str, Any]) -> None:
    body: Any = {"model": NAME, "messages": ONE_TURN, "max_tokens": 4, **change}
    if "max_completion_tokens" in change and "max_tokens" not in change:
        del body["max_tokens"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**body)
    assert caught.value.param == param.removesuffix("[0]")
    assert param.removesuffix("[0]") in caught.value.message


def test_embeddings_without_an_encoder_name_the_flag(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="--embedder"):
        client.embeddings.create(model=NAME, input="x")


def test_the_vllm_extras_reach_the_sampler(client: openai.OpenAI, engine: Engine) -> None:
    greedy = generated(engine, "Once", temperature=0.0, max_tokens=16).text
    extras: list[dict[str, Any]] = [{"top_k": 1}, {"min_p": 1.0}]  # each leaves only the most likely token
    for extra in extras:
        assert client.completions.create(model=NAME, prompt="Once", seed=1, extra_body=extra).choices[0].text == greedy
    ids = list(generated(engine, "Once", temperature=0.0, max_tokens=16).token_ids)
    stopped = client.completions.create(model=NAME, prompt="Once", temperature=0, extra_body={"stop_token_ids": [ids[5]]})
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens == ids.index(ids[5]) + 1
    assert stopped.choices[0].finish_reason == "stop"
    longer = client.completions.create(model=NAME, prompt="Once", temperature=0, extra_body={"stop_token_ids": [ids[5]], "min_tokens": 8})
    assert longer.usage is not None
    assert longer.usage.completion_tokens >= 8
