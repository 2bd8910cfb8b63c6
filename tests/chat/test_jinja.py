"""The sandbox renders as transformers does, and no template can exhaust the machine."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given

from lamina.chat.bounds import BASE_SIZE, TemplateFailure
from lamina.chat.jinja import compile_template
from lamina.chat.message import Message, ToolCall
from lamina.chat.template import ChatTemplate
from lamina.chat.turns import as_turn
from lamina.errors import DataError
from tests.support.chat_families import FIXTURES, TOOL, conversations, family_tokenizer, fast, fixture_source
from tests.support.models_zoo import CHATML, build_tokenizer

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def rendered(source: str, **variables: object) -> str:
    return compile_template(source).render({"messages": TURNS, "tools": None, **variables}, 1000)


def as_transformers(name: str, messages: tuple[Message, ...], tools: list[dict] | None, prompt: bool) -> str:
    date = {"date_string": "26 Jul 2024"} if name == "llama3.1" else {}
    text = family_tokenizer(name, True).apply_chat_template(
        [as_turn(message) for message in messages],
        tools=tools,
        tokenize=False,
        add_generation_prompt=prompt,
        **date,  # type: ignore[arg-type]
    )
    assert isinstance(text, str)
    return text


def as_ours(name: str, messages: tuple[Message, ...], tools: list[dict] | None, prompt: bool) -> str:
    variables = {"documents": None, "add_generation_prompt": prompt, **family_tokenizer(name, True).special_tokens_map}
    turns = [as_turn(message) for message in messages]
    return compile_template(fixture_source(name)).render({**variables, "messages": turns, "tools": tools}, 1000)


@pytest.mark.parametrize("name", FIXTURES)
@fast
@given(messages=conversations())
def test_text_is_what_transformers_renders(name: str, messages: tuple[Message, ...]) -> None:
    if not FIXTURES[name].system and messages[0].role == "system":
        messages = messages[1:]
    for prompt in (False, True):
        assert as_ours(name, messages, None, prompt) == as_transformers(name, messages, None, prompt)


@pytest.mark.parametrize("name", [name for name, family in FIXTURES.items() if family.tools])
def test_tools_and_reasoning_are_what_transformers_renders(name: str) -> None:
    call = ToolCall("get_weather", {"city": "Zürich <b>", "days": [1, 2.5, None]}, "abcdefghi")
    result = Message("tool", '{"sky": "clear"}', name="get_weather", tool_call_id="abcdefghi")
    question = Message("user", "the weather?")
    messages = (question, Message("assistant", "", (call,)), result, Message("assistant", "Clear.", thinking="so"))
    assert as_ours(name, messages, [TOOL], False) == as_transformers(name, messages, [TOOL], False)
    assert as_ours(name, messages[:3], [TOOL], True) == as_transformers(name, messages[:3], [TOOL], True)


SAME = {
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "trimmed blocks": "  {% if true %}\n  x\n  {% endif %}\ny\n",
    "tojson": "{{ messages | tojson(indent=2, sort_keys=true) }}{{ {'ü': '<'} | tojson(separators=(',', ':')) }}",
    "escaped json": "{{ 'ü' | tojson(ensure_ascii=true) }}",
    "namespaces": "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}",
    "generation": "{% generation %}{% set x = 1 %}a{{ x }}{% endgeneration %}{{ x }}",
    "macros": "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call f(1) %}!{% endcall %}",
    "joined": "{{ messages | map(attribute='role') | join(', ') }}{{ 'a' ~ 1 ~ none }}{{ ','.join(['a', 'b']) }}",
    "loops": "{% for m in messages %}{{ loop.index0 }}{{ loop.length }}{{ loop.cycle(1, 2) }}{% endfor %}",
    "long loop": "{% for i in range(100) %}{{ i if loop.last }}{{ loop.length if loop.first }}{% endfor %}",
    "recursion": "{% for m in [[1, [2]], 3] recursive %}{{ loop(m) if m is iterable else m }}{% endfor %}",
    "formats": "{{ '%s-%05.1f' % ('a', 2) }}{{ '{:>5}|{x}'.format('a', x=[1]) }}{{ '%s' | format('b') }}",
    "numbers": "{{ 2 ** 10 * 3 % 7 }}{{ 'ab' * 3 }}{{ [1] * 2 }}{{ 7 // 2 }}{{ [1] + [2] }}",
    "methods": "{{ ' a b '.strip().split(' ') }}{{ 'a'.replace('a', 'bb').title() }}{{ messages[0].items() | list }}",
    "dict methods go before keys": "{{ {'items': 1}.items is callable }}{{ {'a': 1}.a }}{{ {'items': 1}['items'] }}",
    "filters": "{{ 'a b' | title | replace('A', 'c') | indent(2, true) | center(9) }}{{ [3, 1] | sort | first }}",
    "captured": "{% set x %}{{ 1 }}{{ 2 }}{% endset %}{{ x }}{% with y = [1, 2] %}{{ y }}{% endwith %}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys([1, 2], 0) }}",
}


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_jinja_that_templates_use_gives_what_transformers_gives(source: str) -> None:
    assert rendered(source) == build_tokenizer().apply_chat_template(TURNS, chat_template=source, tokenize=False)


_BIG = "{% set x = 'x' * 900000 %}"
BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "repetition": "{{ 'a' * 10 ** 10 }}",
    "list repetition": "{{ [messages] * 10 ** 9 }}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling of lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
    "doubling of dicts": "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = {1: n.x, 2: n.x} %}"
    "{% endfor %}",
    "doubling by capture": "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "macros": _BIG + "{% macro f() %}" + "{{ x }}" * 3000 + "{% endmacro %}{{ f() | length }}",
    "recursive macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "power": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x ** n.x %}{% endfor %}",
    "big numbers": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "wide range": "{% for i in range(99999999) %}{% endfor %}",
    "width of %": "{{ '%9999999999d' % 1 }}",
    "width in a value": "{{ '%*d' % (10 ** 10, 1) }}",
    "width of format": "{{ '{:>9999999999}'.format('a') }}",
    "nested width": "{{ '{:{x[w]}}'.format(1, x={'w': 10 ** 10}) }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "replace": _BIG + "{{ x.replace('x', x) }}",
    "replace filter": _BIG + "{{ x | replace('x', x) }}",
    "join": _BIG + "{{ range(100000) | list | join(x) }}",
    "join method": _BIG + "{{ x.join(['a'] * 100000) }}",
    "indent": "{{ 'a\nb' | indent(10 ** 10) }}",
    "tabs": "{{ ('a\t' * 1000).expandtabs(900000) }}",
    "translate": _BIG + "{{ x.translate({120: x}) }}",
    "json indent": "{{ messages | tojson(indent=99999999) }}",
    "batch": _BIG + "{{ [x] | batch(999999, x) | list }}",
    "bytes": "{{ (1).to_bytes(10 ** 9) }}",
    "list literal": _BIG + "{{ [" + ",".join(["x"] * 3000) + "] }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_template_without_end_or_measure_is_stopped(source: str) -> None:
    failures: list[str] = []
    seconds: list[float] = []

    def work() -> None:  # a thread cannot use signals
        with pytest.raises(TemplateFailure) as caught:
            rendered(source)
        failures.append(str(caught.value))
        seconds.append(time.thread_time())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert failures
    assert seconds[0] < 2.5
    assert any(
        words in failures[0] for words in ("it produces more", "it takes more", "bits", "it indents", "Recursion")
    )


def test_stopped_template_is_a_data_error_of_the_row() -> None:
    template = ChatTemplate(
        build_tokenizer(), "model", CHATML + "{% if messages | length > 2 %}{{ 'a' * 10 ** 9 }}{% endif %}"
    )
    turns = [Message("user", "q"), Message("assistant", "a")]
    assert template.render_spans(turns).answers
    with pytest.raises(DataError, match=r"refuses the conversation: it produces more than .* characters"):
        template.render([*turns, *turns])


def test_bounds_grow_with_the_conversation() -> None:
    source = "{% for i in range(30) %}{{ messages[0].content }}{% endfor %}"
    long = {"role": "user", "content": "x" * BASE_SIZE}
    text = compile_template(source).render({"messages": [long]}, BASE_SIZE)
    assert len(text) == 30 * BASE_SIZE
    with pytest.raises(TemplateFailure, match="it produces more than"):
        compile_template(source.replace("30", "70")).render({"messages": [long]}, BASE_SIZE)


FORBIDDEN = {
    "classes": "{{ ''.__class__.__mro__ }}",
    "classes in formats": "{{ '{0.__class__.__mro__}'.format('') or raise_exception('unsafe') }}",
    "changes": "{{ messages.append(1) }}",
    "namespaces with underscores": "{% set n = namespace(_a=1) %}",
    "other files": "{% include '/etc/passwd' %}",
    "chance": "{{ [1, 2] | random }}",
    "random words": "{{ lipsum() }}",
    "escaping": "{% autoescape true %}{% endautoescape %}",
    "syntax": "{% for %}",
    "deep nesting": "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
    "length": "x" * 1_000_001,
}


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_no_template_may_do(source: str) -> None:
    with pytest.raises(TemplateFailure):
        rendered(source)


def test_date_is_the_same_every_day() -> None:
    guarded = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}none{% endif %}"
    assert rendered(guarded) == "none"
    assert rendered("{{ strftime_now('%d %b %Y') }}") == "01 Jan 2025"


def test_templates_of_two_threads_do_not_share_their_bounds() -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(200):
                assert rendered("{% for i in range(300) %}x{% endfor %}") == "x" * 300
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
