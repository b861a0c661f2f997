from __future__ import annotations

import resource

import pytest

from arenite.runtime import sandbox
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


DOUBLED = "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ---- %}{% endfor %}{{ ns.x | length }}"
LONG = "{% set long = 'ab' * 4000000 %}"
NESTED = "{% set l = range(9999) | list %}{% for i in l %}{% for j in l ---- %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [
    "{{ '%300000000d' % 1 }}", "{{ '%*d' % (300000000, 1) }}", "{{ '%99999d%99999d' * 9999 % ((1, 1) * 9999) }}",
    "{{ '{:300000000}'.format(1) }}", "{{ '{:{w}}'.format(1, w=300000000) }}", "{{ '{x:9}'.format_map({'x': 1}) }}",
    "{{ '%300000000d' | format(1) }}", "{{ ['%300000000d'] | map('format', 1) | join }}",
    "{{ 'a'.ljust(300000000) | length }}", "{{ 'a' | center(300000000) | length }}",
    "{{ ('\\t' * 1000000).expandtabs(100000) | length }}", "{{ ('a\\n' * 1000000) | indent(100000) | length }}",
    LONG + "{{ long.replace('a', long) | length }}", LONG + "{{ long | replace('a', long) | length }}",
    LONG + "{{ long.join([long] * 100000) | length }}", LONG + "{{ [long] * 100000 | join(long) | length }}",
    LONG + "{{ ([{'x': long}] * 100000) | map(attribute='x') | join | length }}",
    LONG + "{{ ''.join(([{'x': long}] * 100000) | map(attribute='x')) | length }}",
    LONG + "{% set ns = namespace(l=[]) %}{% for i in range(3000) %}{% set ns.l = ns.l + [long[i:]] %}{% endfor %}",
    "{{ [[1] * 1000000, [2]] | tojson(indent=100000) | length }}",
    "{{ ([[1] * 1000000] * 1000) | sum(start=[]) | length }}", "{{ lipsum(n=1000000) | length }}",
    DOUBLED.replace("----", "ns.x + ns.x"), DOUBLED.replace("----", "ns.x ~ ns.x"),
    DOUBLED.replace("----", "[ns.x, ns.x] | join"), DOUBLED.replace("----", "'%s%s' % (ns.x, ns.x)"),
    "{% set a = 'aaaaaaaa' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "{% set a = ['x', 'y'] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "{% set a = ['x', 'y'] %}" + "{% set a = [a, a] %}" * 60 + "{{ a | string | length }}",
    "{% set a = namespace(x=1) %}" + "{% set a.x = [a.x, a.x] %}" * 60 + "{{ a }}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "{{ 'x' * 999999999 }}", "{{ [0] * 999999999 }}",
])
def test_a_template_that_makes_too_much_is_refused_before_it_fills_the_memory(template: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest, match="chat template"):
        render(template, HELLO)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10, "KiB"


@pytest.mark.parametrize("template", [
    NESTED.replace("----", ""), NESTED.replace("----", "if false"),
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "{% for i in [1, 1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
])
def test_a_template_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.1)
    with pytest.raises(InvalidRequest, match=r"it takes more than 0\.1 s"):
        render(template, HELLO)


def test_what_chat_templates_do_is_not_touched() -> None:
    template = (
        "{% macro say(m, n=2) %}{{ m.role ~ ':' ~ n }} {{ m['content'][1:] | trim | upper }}{% endmacro %}"
        "{% set ns = namespace(text='') %}{% for m in messages if m.role != 'system' %}{{ say(m) }}"
        "{% set ns.text = ns.text + m.content.replace('l', 'LL').split('e')[0] %}{% else %}none{% endfor %}"
        "{{ ns.text }} {{ '%s-%03d' % ('n', 7) }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ [1, 2] + [3] }} {{ 'a-' * 2 }}"
        "{{ messages | map(attribute='role') | join(', ') }} {{ ', '.join(messages | map(attribute='role')) }}"
        " {{ [3, 1] | sort | list }} {{ [1, 2] | sum }} {{ 'a\\nb' | indent(2) }} {{ {'a': [1]} | tojson(indent=1) }}"
        "{{ 'xay' | replace('a', 'bb') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    )
    assert render(template, [{"role": "system", "content": "x"}, *HELLO]) == (
        'user:2 ELLOh n-007 3 1024 [1, 2, 3] a-a-system, user system, user [1, 3] 3 a\n  b {\n "a": [\n  1\n ]\n}'
        "xbby 1"
    )


def test_a_long_conversation_has_room() -> None:
    long = [{"role": "user", "content": "word " * 1000}] * 2000
    assert len(render(CHATML, long)) > 2000 * 5000


def test_a_template_as_large_as_a_book_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="chat template has 1,100,000 characters"):
        render("{# x #}" + "x" * 1_099_993, HELLO)
