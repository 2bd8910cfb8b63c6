"""Building a template, what it refuses, and what it says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from lamina.chat.message import Message
from lamina.chat.notes import notes_of
from lamina.chat.template import BUILTIN_TEMPLATES, ChatTemplate, build_template
from lamina.data.encode import encode_examples
from lamina.data.example import Example
from lamina.errors import ConfigError, DataError, ModelError
from tests.support.chat_families import FIXTURES, family_tokenizer
from tests.support.models_zoo import CHATML, build_tokenizer

NO_STOP = "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n{% endfor %}"
QUESTION, ANSWER = Message("user", "q"), Message("assistant", "a")


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(build_tokenizer(), "model", source)


def answers_of(template: ChatTemplate, *messages: Message) -> list[str]:
    rendered = template.render_spans(messages)
    return [rendered.text[span.start : span.end] for span in rendered.answers]


def tokenizer_with(source: str | None, *special: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(source)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def test_text_after_the_appended_stop_token_is_left_out() -> None:
    rendered = template_of(NO_STOP).render_spans(
        [Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "b")]
    )
    assert rendered.text == "### user\nq\n\n### assistant\na\n\n### user\nr\n\n### assistant\nb<|im_end|>"


def test_stop_tokens_set_between_turns_only_are_taught_too() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
    )
    rendered = template_of(source).render_spans(
        [Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "b")]
    )
    # After a last question, there is no stop token and no generation prompt: the model writes both.
    taught = [rendered.text[s.start : s.end] for s in rendered.answers]
    assert taught == ["<|im_end|>assistant: a<|im_end|>", "<|im_end|>assistant: b<|im_end|>"]


REFUSED = {
    "drops all but the last answer": "{% for m in messages %}{% if m.role == 'user' or loop.last %}"
    "{{ m.role }}: {{ m.content }}<|im_end|>{% endif %}{% endfor %}",
    "repeats answers": CHATML.replace("message['content']", "message['content'] * 2"),
    "replaces answers": CHATML.replace("message['content']", "message['content'] | length"),
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_template_that_drops_repeats_or_replaces_answers_is_refused(source: str) -> None:
    messages = [Message("user", "q"), Message("assistant", "one"), Message("user", "r"), Message("assistant", "two")]
    with pytest.raises(DataError, match="changes or drops an assistant turn") as caught:
        template_of(source).render_spans(messages)
    assert "data.chat_template" in str(caught.value)


def test_template_that_drops_earlier_answers_can_be_used_for_single_ones() -> None:
    template = template_of(REFUSED["drops all but the last answer"])
    rendered = template.render_spans([Message("user", "q"), Message("assistant", "one")])
    assert [rendered.text[s.start : s.end] for s in rendered.answers] == ["assistant: one<|im_end|>"]


REFUSALS = {"gemma2": "System role not supported", "llama2": "roles must alternate"}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_of_a_template_is_quoted(name: str) -> None:
    template = build_template(family_tokenizer(name, True))
    turns = [Message("system", "s"), QUESTION, QUESTION, ANSWER]
    with pytest.raises(DataError, match=f"refuses the conversation: .*{REFUSALS[name]}"):
        template.render_spans(turns)


REASONING = "{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}"
REASONING_TEMPLATES = {
    "qwen 3": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if '</think>' in m.content %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}" + REASONING + "<think>\n"
    "{{ thought }}\n</think>\n\n{{ text }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}",
    "deepseek r1": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + REASONING
    + "{{ text }}<|im_end|>\n{% endfor %}",
}


@pytest.mark.parametrize("name", REASONING_TEMPLATES)
def test_template_that_takes_reasoning_apart_never_teaches_the_prompt(name: str) -> None:
    messages = [Message("user", "the secret"), Message("assistant", "<think>\nwhy\n</think>\n\nanswer")]
    try:
        rendered = template_of(REASONING_TEMPLATES[name]).render_spans(messages)
    except DataError:
        return
    (span,) = rendered.answers
    assert rendered.text[span.start : span.end].endswith("answer<|im_end|>")
    assert "the secret" not in rendered.text[span.start : span.end]


@pytest.mark.parametrize("marked", ["user", "assistant"])
def test_text_that_holds_the_marks_themselves_is_not_mistaught(marked: str) -> None:
    texts = {"user": "a", "assistant": "c", marked: "a \U000f1e00 b \U000f1e01"}
    rendered = template_of(CHATML).render_spans([Message(role, text) for role, text in texts.items()])
    (span,) = rendered.answers
    assert rendered.text[span.start : span.end] == texts["assistant"] + "<|im_end|>"


def test_several_answers_with_the_marks_themselves_are_taught() -> None:
    turns = [("user", "a"), ("assistant", "b \U000f1e00"), ("user", "c \U000f1e07"), ("assistant", "d")]
    messages = [Message(*turn) for turn in turns]
    assert answers_of(template_of(CHATML), *messages) == ["b \U000f1e00<|im_end|>", "d<|im_end|>"]


def test_conversation_that_ends_in_a_question_gets_no_stop_token() -> None:
    rendered = template_of(NO_STOP).render_spans([Message("user", "q")])
    assert rendered.answers == ()
    assert rendered.text == "### user\nq\n\n"


def test_models_own_template_goes_before_the_fallback() -> None:
    assert build_template(build_tokenizer()).name == "model"
    assert notes_of(build_template(build_tokenizer())) == []
    fallback = build_template(build_tokenizer(None))
    assert fallback.name == "plain"
    assert "'plain'" in notes_of(fallback)[0]
    assert build_template(build_tokenizer(), "plain").name == "plain"


def test_appended_stop_token_is_noted() -> None:
    (note,) = notes_of(build_template(build_tokenizer(NO_STOP)))
    assert "<|im_end|> is added" in note


def test_stop_token_that_begins_like_another_is_taken_whole() -> None:
    special = ("<end>_of_turn", "<end>", "<end>_of")
    tokenizer = tokenizer_with(CHATML.replace("<|im_end|>", "<end>_of_turn"), *special)
    assert build_template(tokenizer).stop_token == "<end>_of_turn"


def test_unknown_template_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        build_template(build_tokenizer(), "chatlm")
    (problem,) = caught.value.problems
    assert problem.field == "data.chat_template"
    assert "'chatml'" in problem.fix


def test_chatml_needs_its_token() -> None:
    tokenizer = build_tokenizer(None)
    tokenizer.get_vocab = lambda: {"a": 0}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"<\|im_end\|>"):
        build_template(tokenizer, "chatml")


def test_tokenizer_without_any_stop_token_is_refused() -> None:
    tokenizer = build_tokenizer(NO_STOP)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        build_template(tokenizer)


def test_plain_template_begins_with_bos_where_the_tokenizer_adds_it() -> None:
    tokenizer = build_tokenizer(None)
    assert build_template(tokenizer).render([Message("user", "q")]).startswith("### User:")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    template = build_template(tokenizer)
    assert template.render([Message("user", "q")]).startswith("<|endoftext|>### User:")
    (encoded,) = encode_examples([Example((Message("user", "q"), Message("assistant", "a")), 1)], template, "all")
    assert encoded.input_ids.tolist().count(0) == 1


def test_digest_is_of_the_jinja_text() -> None:
    assert template_of(CHATML).digest == template_of(CHATML).digest != template_of(CHATML + " ").digest
    assert template_of(CHATML).digest.startswith("sha256:")


def test_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{# é #}" + CHATML, encoding="utf-8")
    template = build_template(build_tokenizer(), str(path))
    assert (template.name, template.source) == (str(path), "{# é #}" + CHATML)
    assert any(str(path) in note for note in notes_of(template))
    assert template.render([QUESTION, ANSWER]) == template_of(CHATML).render([QUESTION, ANSWER])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{% for %}", "not valid Jinja"),
        (b"{{ x | nope }}", "nope"),
    ],
)
def test_file_that_is_no_template_is_a_config_error(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "own.j2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        build_template(build_tokenizer(), str(path))
    assert caught.value.problems[0].field == "data.chat_template"


def test_models_own_template_that_is_no_jinja_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"the model chat template is not valid Jinja.*\(line 1\)"):
        build_template(build_tokenizer("{% for %}"))


@pytest.mark.parametrize("name", [name for name, text in BUILTIN_TEMPLATES.items() if "needs:" in text])
def test_family_needs_its_tokens(name: str) -> None:
    tokenizer = build_tokenizer(None)
    tokenizer.get_vocab = lambda: {"a": 0}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=rf"'{name}' needs <.*which this model's tokenizer does not have"):
        build_template(tokenizer, name)


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_family_without_its_eos_is_a_model_error_or_has_another_stop(name: str) -> None:
    tokens = ("<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>")
    more = ("<|system|>", "<|user|>", "<|assistant|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
    tokenizer = tokenizer_with(None, *tokens, *more, "<｜User｜>", "<｜Assistant｜>")
    tokenizer.eos_token = None
    tokenizer.bos_token = None
    if name in ("chatml", "gemma", "granite", "llama3", "phi"):
        assert build_template(tokenizer, name).stop_token.startswith("<")
    else:
        with pytest.raises(ModelError, match="eos_token"):
            build_template(tokenizer, name)


def test_dropped_system_turn_is_refused() -> None:
    template = template_of(
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    assert answers_of(template, QUESTION, ANSWER) == ["assistant: a<|im_end|>"]
    with pytest.raises(DataError, match="drops the system turn"):
        template.render([Message("system", "assistant"), QUESTION, ANSWER])


def test_system_turn_that_only_a_question_would_carry_is_refused() -> None:
    with pytest.raises(DataError, match="drops the system turn"):
        build_template(family_tokenizer("mistral-v0.3", True)).render_spans([Message("system", "s"), QUESTION, ANSWER])


def test_system_turn_in_the_middle_that_is_dropped_is_refused() -> None:
    source = CHATML.replace("%}<", "%}{% if loop.first or message.role != 'system' %}<", 1)
    source = source.replace("{% endfor %}", "{% endif %}{% endfor %}")
    turns = [Message("system", "one"), QUESTION, ANSWER, Message("system", "two"), QUESTION, ANSWER]
    with pytest.raises(DataError, match="drops the system turn"):
        template_of(source).render(turns)


REPEATED_BOS = {
    "at the start": "{{ bos_token }}{{ bos_token }}" + CHATML,
    "before the system turn and the question": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "--{{ bos_token }}{% endif %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
}


@pytest.mark.parametrize("source", REPEATED_BOS.values(), ids=REPEATED_BOS)
def test_repeated_bos_is_a_config_error(source: str) -> None:
    with pytest.raises(ConfigError, match=r"writes <\|endoftext\|> more than once"):
        build_template(build_tokenizer(source))


def test_bos_that_opens_every_turn_is_no_repetition() -> None:
    for name in ("smollm2", "llama2"):
        template = build_template(family_tokenizer(name, True))
        text = template.render([QUESTION, ANSWER, QUESTION, ANSWER])
        assert text.count(str(template.tokenizer.bos_token)) > 1


def test_stop_token_that_a_row_would_not_teach_is_refused() -> None:
    source = CHATML.replace("<|im_end|>", "{% if message.content | length < 9 %}<|im_end|>{% endif %}")
    template = template_of(source)
    assert answers_of(template, QUESTION, ANSWER) == ["a<|im_end|>"]
    with pytest.raises(DataError, match=r"does not write the stop token <\|im_end\|> after the last answer"):
        template.render_spans([QUESTION, Message("assistant", "a long answer")])


@pytest.mark.parametrize("name", FIXTURES)
def test_special_token_in_a_row_is_refused(name: str) -> None:
    template = build_template(family_tokenizer(name, True))
    stop = FIXTURES[name].stop
    with pytest.raises(DataError) as caught:
        template.render_spans([QUESTION, ANSWER, Message("user", f"x{stop}y"), ANSWER])
    assert f"the user turn (turn 3) contains {stop!r}" in str(caught.value)
    with pytest.raises(DataError, match="the assistant turn"):
        template.render([QUESTION, Message("assistant", f"x{stop}y")])


def test_special_token_in_the_tools_is_refused() -> None:
    template = template_of(CHATML)
    with pytest.raises(DataError, match="the tools contain"):
        template.render([QUESTION, ANSWER], [{"name": "f", "description": "<|im_start|>"}])


def test_special_token_that_the_template_never_writes_is_a_word_like_others() -> None:
    tokenizer = tokenizer_with(CHATML, "<filename>", "<unk>")
    tokenizer.unk_token = "<unk>"
    template = build_template(tokenizer)
    assert answers_of(template, QUESTION, Message("assistant", "<filename> <unk> </s>")) == [
        "<filename> <unk> </s><|im_end|>"
    ]


DATES = {
    "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}": "gets none",
    "{{ strftime_now('%Y') }}": "gets 2025-01-01",
}


@pytest.mark.parametrize("source", DATES)
def test_date_is_noted(source: str) -> None:
    (note,) = template_of(source + CHATML).notes
    assert DATES[source] in note
