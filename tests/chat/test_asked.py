"""From a prompt with tools to what the engine is asked, and back: by the model's template, or in words where it has none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tripod
from tests.engine.grammar.test_tool_calls import special_tokenizer
from tests.serving.tiny import CONFIG, open_tiny, write_tiny
from tripod.chat.asked import ask_engine
from tripod.chat.local import LocalChatModel
from tripod.engine.engine import Engine, EngineConfig
from tripod.errors import ConfigError, RequestError
from tripod.messages import File, Message, Reply, ToolCall, ToolSpec, assistant, system, user
from tripod.models.initialize import random_language_model
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.chat_template import ChatTemplate
from tripod.text.hf_tokenizer import HfTokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.text.tool_format import arguments_schema, special_marks, tool_format
from tripod.trace import fold

NOW = ToolSpec("now", "The time.", {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]})
CALL = ToolCall("abc123def", "now", '{"zone": "UTC"}')
TALK = [system("Be brief."), user("When?"), Message("assistant", "", (CALL,)), Message("tool", "12:00", tool_call_id="abc123def")]

# The parts of the vendors' templates that say how calls are written.
QWEN = """{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
<tool_call>{"name": <function-name>, "arguments": <args-json-object>}</tool_call>{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.reasoning_content or '' }}{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS] [..."
LLAMA = """{% if tools %}Environment: ipython {"name": function name, "parameters": dictionary}{{ '"parameters": ' }}{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return load_tokenizer(folder)


def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    assert isinstance(tokenizer, HfTokenizer)
    other = HfTokenizer(tokenizer.inner)
    other.chat_template = ChatTemplate(source)
    other.eos_ids = tokenizer.eos_ids
    return other


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("source", "name"),
    [(QWEN, "hermes"), (MISTRAL, "mistral"), (MISTRAL + "[ARGS]", "mistral-args"), (LLAMA, "llama")],
)
def test_the_template_shows_the_format(source: str, name: str) -> None:
    form, is_shown = tool_format(None, ChatTemplate(source))
    assert (form.name, is_shown) == (name, True)


def test_a_format_by_name_wins_and_an_unknown_one_is_named(tokenizer: Tokenizer) -> None:
    assert [tool_format("llama", ChatTemplate(QWEN))[0].name, tool_format("llama", ChatTemplate(QWEN))[1]] == ["llama", False]
    assert tool_format(None, tokenizer.chat_template)[1] is False
    assert tool_format(None, ChatTemplate("{{ tools }}<tool_call><function=x>"))[1] is False  # XML inside, which is not in the table
    with pytest.raises(ConfigError, match="tool_format='xml' is unknown; give one of hermes, "):
        tool_format("xml", None)


def test_a_template_that_knows_tools_is_given_them(tokenizer: Tokenizer) -> None:
    asked = ask_engine(Prompt.of(TALK, tools=(NOW,)), SamplingParams(), with_template(tokenizer, QWEN))
    text = text_of(tokenizer, asked.ids)
    assert json.dumps(NOW.to_json()) in text
    assert '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call>' in text
    assert "<|im_start|>tool\n12:00" in text


def test_without_one_tools_calls_and_results_stand_in_the_text(tokenizer: Tokenizer) -> None:
    for template in (None, "plain"):
        asked = ask_engine(Prompt.of(TALK, tools=(NOW,)), SamplingParams(), tokenizer, chat_template=template)
        text = text_of(tokenizer, asked.ids)
        assert json.dumps(NOW.to_json()["function"]) in text
        assert text.index("Be brief.") < text.index("You may call tools.") < text.index("When?")
        assert '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>' in text
        assert "<tool_response>\n12:00\n</tool_response>" in text


def test_results_of_several_calls_are_one_turn(tokenizer: Tokenizer) -> None:
    results = [Message("tool", text, tool_call_id="x") for text in ("1", "2")]
    text = text_of(tokenizer, ask_engine(Prompt.of([user("?"), *results]), SamplingParams(), tokenizer).ids)
    assert "user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>" in text


def test_with_no_tools_and_with_choice_none_nothing_changes(tokenizer: Tokenizer) -> None:
    plain = ask_engine(Prompt.of([user("Hi")]), SamplingParams(), tokenizer)
    none = ask_engine(Prompt.of([user("Hi")], tools=(NOW,), tool_choice="none"), SamplingParams(), tokenizer)
    assert none == plain
    assert text_of(tokenizer, plain.ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert plain.sampling == SamplingParams()


def test_a_prompt_that_opens_reasoning_is_continued_inside(tokenizer: Tokenizer) -> None:
    thinker = with_template(tokenizer, "{% for m in messages %}{{ m.content }}</think>{% endfor %}<think>\n")
    asked = ask_engine(Prompt.of([user("Hi")]), SamplingParams(), thinker)
    assert (asked.reasons, asked.is_reasoning) == (True, True)
    held = ask_engine(Prompt.of([user("Hi")]), SamplingParams(grammar=Grammar.json_object()), thinker)
    assert held.reasons is False


def test_files_and_what_does_not_go_with_tools_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="this model reads text; the user message holds <file: image/png, 1 bytes>"):
        ask_engine(Prompt.of([user("Look", File(media_type="image/png", data=b"x"))]), SamplingParams(), tokenizer)
    with pytest.raises(RequestError, match="a regex does not go together with tools"):
        ask_engine(Prompt.of([user("Hi")], tools=(NOW,)), SamplingParams(grammar=Grammar.regex("a")), tokenizer)


def test_arguments_are_closed_where_the_schema_names_them_and_leaves_it_open() -> None:
    inner = {"type": "object", "properties": {"a": {}}}
    schema = {"properties": {"x": inner, "free": {"type": "object"}, "more": {**inner, "additionalProperties": True}}}
    closed = arguments_schema(ToolSpec("f", "", schema))
    assert closed["type"] == "object"
    assert closed["additionalProperties"] is False
    assert closed["properties"]["x"]["additionalProperties"] is False
    assert closed["properties"]["free"] == {"type": "object"}
    assert closed["properties"]["more"]["additionalProperties"] is True
    assert arguments_schema(ToolSpec("f", "", {})) == {"type": "object", "properties": {}, "additionalProperties": False}


def test_a_model_in_this_process_calls_tools(tmp_path: Path) -> None:
    async def main() -> Reply:
        async with open_tiny(write_tiny(tmp_path, max_positions=2048), EngineConfig()) as engine:
            bias = {ord('"'): 8.0, ord("}"): 8.0, 256: 8.0}
            prompt = Prompt.of([user("When?")], tools=(NOW,), tool_choice="now")
            return await LocalChatModel(engine).complete(prompt, SamplingParams(seed=1, logit_bias=bias, max_tokens=300))

    reply = tripod.run(main())
    assert [call.name for call in reply.tool_calls] == ["now"]
    assert isinstance(json.loads(reply.tool_calls[0].arguments)["zone"], str)
    assert reply.text == ""
    assert reply.usage.completion_tokens == len(reply.token_ids)


def test_marks_that_are_special_tokens_are_written_and_read_as_these(tmp_path: Path) -> None:
    tokenizer = special_tokenizer(tmp_path)
    assert special_marks(tokenizer) == {"[TOOL_CALLS]": 259, "[ARGS]": 260}

    async def main() -> Reply:
        model = random_language_model(replace(CONFIG, vocab_size=261, max_positions=2048), seed=3)
        prompt = Prompt.of([user("When?")], tools=(NOW,), tool_choice="required")
        sampling = SamplingParams(seed=1, logit_bias={ord('"'): 8.0, ord("}"): 8.0, 256: 8.0, 259: -100.0}, max_tokens=300)
        asked = ask_engine(prompt, sampling, tokenizer, tool_format_name="mistral-args")
        async with Engine(model, tokenizer, EngineConfig(), name="tiny") as engine:
            return await fold(asked.read(engine.stream(asked.ids, asked.sampling)))

    reply = tripod.run(main())
    assert reply.token_ids[:5] == (259, *b"now", 260)
    assert [call.name for call in reply.tool_calls] == ["now"]
    assert list(json.loads(reply.tool_calls[0].arguments)) == ["zone"]


def test_a_conversation_that_was_answered_in_words_keeps_its_words(tokenizer: Tokenizer) -> None:
    text = text_of(tokenizer, ask_engine(Prompt.of([user("a"), assistant("b"), user("c")]), SamplingParams(), tokenizer).ids)
    assert text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
