"""Chat templates: every supervised character is the assistant's own or its stop token's, whatever the template does.

The templates below are written in the style of well-known families. The tokenizer has one token a byte, so that what
the supervised tokens decode to is exactly what is taught.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import groupby

import pytest
from tests.models_zoo import CHATML, build_tokenizer
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from lamina.data.encode import encode_examples
from lamina.data.example import EncodedExample, Example, Message
from lamina.data.template import BUILTIN_TEMPLATES, ChatTemplate, build_template
from lamina.errors import ConfigError, DataError, ModelError


@dataclass(frozen=True)
class Family:
    """A template with what it does to an answer.

    Attributes:
        source: The Jinja text.
        stop: The token that ends an answer.
        special: Tokens that the tokenizer needs besides ChatML's.
        eos: The tokenizer's EOS, where it is not `stop`.
        gap: What stands between an answer and its stop token.
        trims: Whether white space around an answer is removed.
        system: Whether there may be a system turn.
        stop_in_between: Whether answers other than the last one end in the stop token too.
    """

    source: str
    stop: str
    special: tuple[str, ...] = ()
    eos: str | None = None
    gap: str = ""
    trims: bool = False
    system: bool = True
    stop_in_between: bool = True

    def taught(self, answers: list[str]) -> list[str]:
        """What should be supervised of these answers."""
        texts = [answer.strip() if self.trims else answer for answer in answers]
        ends = [self.gap + self.stop if self.stop_in_between else ""] * (len(texts) - 1) + [self.gap + self.stop]
        return [text + end for text, end in zip(texts, ends, strict=True)]


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>"),
    "chatml with a default system turn": Family(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML,
        "<|im_end|>",
        eos="<|endoftext|>",
    ),
    "llama 3": Family(
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        eos="<|end_of_text|>",
        trims=True,
    ),
    "llama 2": Family(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
        "{% else %}<<SYS>>\n{{ m.content }}\n<</SYS>>\n\n{% endif %}{% endfor %}",
        "</s>",
        ("</s>",),
        gap=" ",
        trims=True,
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}",
        "</s>",
        ("</s>", "[INST]", "[/INST]"),
        system=False,
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>"),
        eos="<|endoftext|>",
        trims=True,
        system=False,
    ),
    "phi": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        eos="<|endoftext|>",
    ),
    "zephyr": Family(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "</s>",
        ("</s>",),
    ),
    "no stop token": Family(
        "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n{% endfor %}", "<|im_end|>", stop_in_between=False
    ),
}

FRAGMENTS = (
    *(
        "yes",
        "The answer is 42.",
        "naïve café",
        "日本語のテスト",
        "👩‍👩‍👧 🎉",
        "\u200b",
        "e\u0301",
        "\t",
        " ",
        "   ",
        "\n",
        "\n\n",
    ),
    *("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<|end|>", "[INST] x [/INST]", "<"),
    *("### assistant\n", "### Assistant:\n", "{{ bos_token }}", "{% for m in messages %}", "<think>", "\r\n", "\x00"),
)


def tokenizer_for(family: Family) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(family.source)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    tokenizer.eos_token = family.eos or family.stop
    return tokenizer


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(build_tokenizer(), "model", source)


def random_text(rng: random.Random) -> str:
    while True:
        text = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 5)))
        if text.strip():
            return text


def random_conversation(rng: random.Random, system: bool) -> tuple[Message, ...]:
    messages = [Message("system", random_text(rng))] if system and rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 4)):
        messages += [Message("user", random_text(rng)), Message("assistant", random_text(rng))]
    return tuple(messages)


def answers_of(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages if message.role == "assistant"]


def supervised_runs(example: EncodedExample, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of each unbroken run of supervised tokens."""
    pairs = zip(example.supervised.tolist(), example.input_ids.tolist(), strict=True)
    runs = [[token for _, token in run] for supervised, run in groupby(pairs, lambda pair: pair[0]) if supervised]
    return [tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False) for run in runs]


@pytest.mark.parametrize("name", FAMILIES)
def test_supervised_tokens_are_the_answers_with_their_stop_tokens(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_for(family)
    template = build_template(tokenizer)
    assert (template.name, template.stop_token) == ("model", family.stop)
    rng = random.Random(name)
    examples = [Example(random_conversation(rng, family.system), row) for row in range(60)]
    for example, encoded in zip(examples, encode_examples(examples, template, "assistant"), strict=True):
        answers = answers_of(example.messages)
        assert supervised_runs(encoded, tokenizer) == family.taught(answers), example
        assert encoded.input_ids[encoded.supervised][-1] == template.stop_token_id
        rendered = template.render_spans(example.messages)
        assert [rendered.text[span.start : span.end] for span in rendered.answers] == family.taught(answers)
        whole = tokenizer.decode(encoded.input_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert whole == rendered.text


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_built_in_templates_teach_the_answers_as_they_stand(name: str) -> None:
    tokenizer = build_tokenizer(None)
    template = build_template(tokenizer, name)
    rng = random.Random(name)
    examples = [Example(random_conversation(rng, system=True), row) for row in range(60)]
    for example, encoded in zip(examples, encode_examples(examples, template, "assistant"), strict=True):
        assert supervised_runs(encoded, tokenizer) == [f"{a}<|im_end|>" for a in answers_of(example.messages)], example


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_generation_prompt_of_built_in_templates_is_what_training_saw(name: str) -> None:
    template = build_template(build_tokenizer(None), name)
    rng = random.Random(0)
    for _ in range(30):
        messages = random_conversation(rng, system=True)
        rendered = template.render_spans(messages)
        prompt = template.render(messages[:-1], add_generation_prompt=True)
        assert prompt == rendered.text[: rendered.answers[-1].start]


def test_text_after_the_appended_stop_token_is_left_out() -> None:
    rendered = template_of(FAMILIES["no stop token"].source).render_spans(
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
    assert [rendered.text[s.start : s.end] for s in rendered.answers] == ["a<|im_end|>", "b<|im_end|>"]


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
    assert [rendered.text[s.start : s.end] for s in rendered.answers] == ["one<|im_end|>"]


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_refusal_of_a_template_is_quoted(name: str) -> None:
    template = build_template(tokenizer_for(FAMILIES[name]))
    messages = [Message("system", "s"), Message("user", "q"), Message("assistant", "a")]
    words = {"gemma": "System role not supported", "mistral": "roles must alternate"}[name]
    with pytest.raises(DataError, match=words):
        template.render_spans(messages)


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


def test_several_answers_with_the_marks_themselves_are_refused() -> None:
    turns = [("user", "a"), ("assistant", "b \U000f1e00"), ("user", "c"), ("assistant", "d")]
    with pytest.raises(DataError, match="changes or drops an assistant turn"):
        template_of(CHATML).render_spans([Message(*turn) for turn in turns])


def test_conversation_that_ends_in_a_question_gets_no_stop_token() -> None:
    rendered = template_of(FAMILIES["no stop token"].source).render_spans([Message("user", "q")])
    assert rendered.answers == ()
    assert rendered.text == "### user\nq\n\n"


def test_models_own_template_goes_before_the_fallback() -> None:
    assert build_template(build_tokenizer()).name == "model"
    assert build_template(build_tokenizer()).notes == []
    fallback = build_template(build_tokenizer(None))
    assert fallback.name == "plain"
    assert "'plain'" in fallback.notes[0]
    assert build_template(build_tokenizer(), "plain").name == "plain"


def test_appended_stop_token_is_noted() -> None:
    (note,) = build_template(tokenizer_for(FAMILIES["no stop token"])).notes
    assert "<|im_end|> is added" in note


def test_stop_token_that_begins_like_another_is_taken_whole() -> None:
    family = Family(CHATML.replace("<|im_end|>", "<end>_of_turn"), "<end>_of_turn", ("<end>", "<end>_of"))
    assert build_template(tokenizer_for(family)).stop_token == "<end>_of_turn"


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
    tokenizer = build_tokenizer(FAMILIES["no stop token"].source)
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
