from __future__ import annotations

import pytest

from arenite.runtime.chat import check_messages, render
from arenite.runtime.errors import InvalidRequest

CHATML = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% if schema %}<|action|>{% endif %}{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def test_a_conversation_is_rendered_up_to_the_assistants_turn() -> None:
    assert render(CHATML, HELLO) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_a_schema_puts_the_templates_marker() -> None:
    assert render(CHATML, HELLO, schema={"type": "object"}).endswith("assistant\n<|action|>")


def test_special_texts_and_loop_controls_are_there() -> None:
    loop = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    template = "{{ bos_token }}" + loop
    assert render(template, HELLO * 3, start_text="<s>") == "<s>hello"


def test_training_marks_and_all_arguments_of_tojson_are_understood() -> None:
    marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}"
    json = "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}"
    assert render(marked + json, HELLO) == 'hello{"a":"\\u00e9","b":1}'


def test_json_is_written_without_html_escapes() -> None:
    assert render("{{ messages[0].content | tojson }}", [{"role": "user", "content": "<é>"}]) == '"<é>"'


@pytest.mark.parametrize("template", [
    "{{ raise_exception('roles must alternate') }}", "{% if %}", "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}", "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ messages[9].content }}",
    "{{ range(999999999) | list }}", "{{ 'a' * 9999999999 }}", "{{ 9 ** 9 ** 9 }}",
    "{{ [0] * 99999999999 }}", "{{ cycler.__init__.__globals__ }}",
])
def test_templates_that_refuse_break_or_reach_out_are_typed_errors(template: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        render(template, HELLO)


@pytest.mark.parametrize("messages", [
    [], "text", {"role": "user"}, [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}], ["hello"],
    [{"role": "user", "content": None}],
])
def test_messages_are_checked_and_the_bad_one_is_named(messages: object) -> None:
    with pytest.raises(InvalidRequest, match="message"):
        check_messages(messages)


@pytest.mark.parametrize("template", [
    "{{ '%300000000d' % 1 }}", "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "{{ 'x' * 999999999 }}",
])
def test_a_template_that_makes_too_much_is_refused_before_it_fills_the_memory(template: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        render(template, HELLO)
