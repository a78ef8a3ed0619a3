"""Chat templates against transformers' `apply_chat_template`, on templates written in the style of well-known models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tripod.errors import ConfigError, RequestError
from tripod.messages import Message, ToolCall, assistant, system, user
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.chat_template import ChatTemplate
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

CHATML = """{% for message in messages %}
    {% if loop.first and messages[0].role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}

{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You have these functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
        {%- continue %}
    {%- endif %}
    {%- if 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- set ns = namespace(index=0) -%}
{{ bos_token }}
{%- for message in messages -%}
    {%- if message["role"] not in ["user", "assistant", "tool"] -%}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") -}}
    {%- endif -%}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) -%}
        {{- raise_exception("After the optional system message, conversation roles must alternate user and assistant roles!") -}}
    {%- endif -%}
    {%- set ns.index = ns.index + 1 -%}
    {%- if message["role"] == "user" -%}
        {{ "[INST] " + message["content"] + " [/INST]" }}
    {%- else -%}
        {{ " " + message["content"] + eos_token }}
    {%- endif -%}
{%- endfor -%}
"""

TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA_2, "llama-3": LLAMA_3, "mistral": MISTRAL}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TURN = [user("Why is <b>π</b> irrational?"), assistant("  Because & since…\n"), user("Go on.\n\nPlease.")]
CONVERSATIONS = {
    "one question": [user("Hello")],
    "three turns": TURN,
    "a system prompt": [system("Answer in one line."), *TURN],
    "roles that do not alternate": [user("a"), user("b")],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city <now>, in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = [
    user("Is it warm in Zürich?"),
    Message("assistant", "", tool_calls=(ToolCall("c1", "weather", '{"city": "Zürich"}'),)),
    Message("tool", '{"celsius": 21}', tool_call_id="c1"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' own reading of the same special tokens."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("reference")
    write_byte_tokenizer(folder)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SPECIAL)


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The same conversation as one would write it for transformers."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls:
            entry["tool_calls"] = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}]
        plain.append(entry)
    return plain


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_renders_as_transformers_renders_it(
    reference: Any, name: str, conversation: str, add_generation_prompt: bool
) -> None:
    from jinja2.exceptions import TemplateError

    template, messages = TEMPLATES[name], CONVERSATIONS[conversation]
    ours = ChatTemplate(template, special_tokens=SPECIAL)
    try:
        expected = reference.apply_chat_template(
            _plain(messages), chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        with pytest.raises(RequestError, match=str(error)[:40]) as refusal:
            ours.render(messages, add_generation_prompt=add_generation_prompt)
        assert refusal.value.param == "messages"
    else:
        assert ours.render(messages, add_generation_prompt=add_generation_prompt) == expected


def test_the_conversations_above_are_both_rendered_and_refused() -> None:
    """Guards the comparison above against comparing refusals only."""
    template = ChatTemplate(LLAMA_2, special_tokens=SPECIAL)
    assert template.render([user("Hello")]) == "<s>[INST] Hello [/INST]"
    with pytest.raises(RequestError, match="must alternate"):
        template.render(CONVERSATIONS["roles that do not alternate"])


def test_tools_calls_and_results_render_as_transformers_renders_them(reference: Any) -> None:
    expected = reference.apply_chat_template(_plain(CALL), tools=TOOLS, chat_template=LLAMA_3, tokenize=False, add_generation_prompt=True)
    assert "Zürich" in expected
    assert "<now>, in °C" in expected  # neither HTML nor ASCII escapes
    assert ChatTemplate(LLAMA_3, special_tokens=SPECIAL).render(CALL, tools=TOOLS) == expected


def test_the_date_is_the_clock_s_that_was_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2031, 2, 3))
    assert template.render([]) == "03 Feb 2031"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{% set _ = messages.append(1) %}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_template_that_reaches_out_of_the_sandbox_is_refused(attack: str) -> None:
    with pytest.raises(ConfigError):
        ChatTemplate(attack).render([user("Hello")])


def test_attribute_escapes_are_stopped_by_the_sandbox_not_by_chance() -> None:
    with pytest.raises(ConfigError, match="stopped by the sandbox: access to attribute '__class__'"):
        ChatTemplate("{{ ''.__class__.__mro__ }}").render([])


def test_a_broken_template_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match="not valid Jinja at line 2"):
        ChatTemplate("{{ bos_token }}\n{% if %}").check()


def test_a_template_that_fails_on_the_messages_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"failed on 1 messages: TypeError.*--chat-template FILE"):
        ChatTemplate("{{ messages[0].content + 1 }}").render([user("Hello")])


def test_arguments_that_are_no_json_are_shown_as_the_model_wrote_them() -> None:
    template = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments }}")
    assert template.render([Message("assistant", "", tool_calls=(ToolCall("c1", "weather", "city: Bern"),))]) == "city: Bern"


def _folder_with(tmp_path: Path, config: str) -> Path:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return tmp_path


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
    assert tokenizer.chat_template is not None
    return tokenizer.chat_template


def test_named_templates_are_chosen_by_whether_tools_are_given(tmp_path: Path) -> None:
    templates = '[{"name": "tool_use", "template": "with {{ tools | length }}"}, {"name": "default", "template": "plain"}]'
    template = template_of(load_tokenizer(_folder_with(tmp_path, f'{{"chat_template": {templates}}}')))
    assert template.render([user("x")]) == "plain"
    assert template.render([user("x")], tools=TOOLS) == "with 1"


def test_a_template_file_wins_over_the_configuration_and_knows_its_special_tokens(tmp_path: Path) -> None:
    folder = _folder_with(tmp_path, '{"chat_template": "from the config", "bos_token": {"content": "<|im_start|>"}}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }} from the file", encoding="utf-8")
    assert template_of(load_tokenizer(folder)).render([]) == "<|im_start|> from the file"


def test_a_template_that_the_caller_passes_wins_over_all(tmp_path: Path) -> None:
    folder = _folder_with(tmp_path / "model", '{"chat_template": "from the config"}')
    own = tmp_path / "own.jinja"
    own.write_text("own", encoding="utf-8")
    assert template_of(load_tokenizer(folder, chat_template=own)).render([]) == "own"


def test_a_template_file_that_is_absent_is_a_clear_error(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"none\.jinja cannot be read"):
        load_tokenizer(tmp_path, chat_template=tmp_path / "none.jinja")
