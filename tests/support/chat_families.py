"""What the tests of chat templates share: ten well-known formats with what they do, and random conversations.

The files in `models/` are our own writing of these models' formats. The tokenizers have one token a byte, so that what
supervised tokens decode to is exactly what is taught.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from lamina.chat.message import Message, ToolCall
from lamina.chat.template import BUILTIN_TEMPLATES
from tests.support.models_zoo import build_tokenizer

MODELS = Path(__file__).parent / "templates" / "models"

fast = settings(
    derandomize=True,
    deadline=None,
    max_examples=15,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@dataclass(frozen=True)
class Family:
    """A chat format.

    Attributes:
        stop: The token that ends an answer.
        special: Tokens that the tokenizer needs besides ChatML's.
        bos: The tokenizer's BOS; None for none.
        eos: Its EOS, where that is not `stop`.
        gap: What stands between an answer and its stop token.
        opening: What stands between the prompt of use and an answer.
        last_opening: The same of the last answer, if it has no reasoning.
        trims: Whether white space around an answer is removed.
        system: Whether a row to train on may have a system turn.
        tools: Whether tools and calls have a place.
        thinking: Whether reasoning has one.
        drops_thinking: Whether it is removed from the content, too.
        drops_beside_calls: Whether what a turn says beside its calls is removed.
    """

    stop: str
    special: tuple[str, ...] = ()
    bos: str | None = "<s>"
    eos: str | None = None
    gap: str = ""
    opening: str = ""
    last_opening: str = ""
    trims: bool = False
    system: bool = True
    tools: bool = False
    thinking: bool = False
    drops_thinking: bool = False
    drops_beside_calls: bool = False

    def taught(self, answer: str, is_last: bool = False) -> str:
        """What should be supervised of an answer."""
        opening = (self.last_opening if is_last else "") or self.opening
        return opening + (answer.strip() if self.trims else answer) + self.gap + self.stop

    def all_taught(self, answers: list[str]) -> list[str]:
        """What should be supervised of the answers of a conversation."""
        return [self.taught(answer, number == len(answers)) for number, answer in enumerate(answers, start=1)]


_LLAMA3 = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
)
_CHATML = {"stop": "<|im_end|>", "bos": None, "eos": "<|im_end|>"}
_GRANITE = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>")
_DEEPSEEK = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
)
_COMMAND = (
    *("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    *("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
)

FIXTURES = {
    "llama3.1": Family(
        "<|eot_id|>",
        _LLAMA3,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        trims=True,
        tools=True,
        drops_beside_calls=True,
    ),
    "llama2": Family("</s>", ("<s>", "</s>"), gap=" ", opening=" ", trims=True),
    "mistral-v0.3": Family(
        "</s>",
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
        opening=" ",
        trims=True,
        system=False,
        tools=True,
        drops_beside_calls=True,
    ),
    "qwen2.5": Family(**_CHATML, tools=True),
    "qwen3": Family(**_CHATML, last_opening="<think>\n\n</think>\n\n", tools=True, thinking=True),
    "gemma2": Family(
        "<end_of_turn>",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        trims=True,
        system=False,
    ),
    "phi4": Family("<|im_end|>", ("<|im_sep|>",), bos=None, eos="<|im_end|>"),
    "deepseek-v3": Family(
        "<｜end▁of▁sentence｜>", _DEEPSEEK, bos="<｜begin▁of▁sentence｜>", tools=True, drops_thinking=True
    ),
    "zephyr": Family("</s>", ("<s>", "</s>")),
    "granite3": Family("<|end_of_text|>", _GRANITE, bos="<|end_of_text|>", tools=True),
    "smollm2": Family("<|im_end|>", bos="<|im_start|>", eos="<|im_end|>"),
    "command-r": Family("<|END_OF_TURN_TOKEN|>", _COMMAND, bos="<BOS_TOKEN>", trims=True),
}

BUILTINS = {
    "alpaca": Family("</s>", ("<s>", "</s>")),
    "chatml": Family(**_CHATML),
    "deepseek": Family("<｜end▁of▁sentence｜>", _DEEPSEEK[:4], bos="<｜begin▁of▁sentence｜>"),
    "gemma": Family("<end_of_turn>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>"),
    "granite": Family("<|end_of_text|>", _GRANITE, bos=None),
    "llama2": Family("</s>", ("<s>", "</s>"), gap=" ", opening=" "),
    "llama3": Family("<|eot_id|>", _LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>"),
    "mistral": Family("</s>", ("<s>", "</s>"), opening=" "),
    "phi": Family("<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), bos=None, eos="<|endoftext|>"),
    "plain": Family("</s>", ("<s>", "</s>")),
    "vicuna": Family("</s>", ("<s>", "</s>")),
    "zephyr": Family("</s>", ("<s>", "</s>")),
}
assert set(BUILTINS) == set(BUILTIN_TEMPLATES)

ALL_TOKENS = sorted(
    {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    | {token for family in (*FIXTURES.values(), *BUILTINS.values()) for token in (*family.special, family.stop)}
)

FRAGMENTS = (
    *(
        "yes",
        "The answer is 42.",
        "naïve café",
        "日本語",
        "👩‍👩‍👧 🎉",
        "\u200b",
        "e\u0301",
        "\t",
        " ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
    ),
    *(
        "<",
        "<|",
        "<b>x</b>",
        "### assistant\n",
        "### Assistant:\n",
        "assistant\n",
        "[INST",
        "USER: ",
        "\x00",
        '"',
        "\\n",
    ),
    *("{{ bos_token }}", "{% for m in messages %}", "{# no #}", "\U000f1e06", "\ue000", "<tool_call>", "None", "{}"),
)


@cache
def fixture_source(name: str) -> str:
    """The Jinja text of a fixture."""
    return (MODELS / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def family_tokenizer(name: str, is_fixture: bool) -> PreTrainedTokenizerFast:
    """One token a byte, with the special tokens of the family and, of a fixture, its template."""
    family = FIXTURES[name] if is_fixture else BUILTINS[name]
    tokenizer = build_tokenizer(fixture_source(name) if is_fixture else None)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    tokenizer.bos_token = family.bos
    tokenizer.eos_token = family.eos or family.stop
    return tokenizer


def _no_tokens(text: str) -> bool:
    return not any(token in text for token in ALL_TOKENS)


texts = (
    st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=5)
    .map("".join)
    .filter(_no_tokens)
)
words = texts.filter(lambda text: bool(text.strip()))
names = st.from_regex(r"[a-z][a-z_]{2,8}", fullmatch=True)
values = st.none() | st.booleans() | st.integers(-9, 9) | words | st.lists(words, max_size=2)
calls = st.builds(ToolCall, names, st.dictionaries(names, values, max_size=3), st.sampled_from(["", "call_0123456789"]))


@st.composite
def conversations(draw: st.DrawFn, system: bool = True) -> tuple[Message, ...]:
    """Questions and answers, perhaps with a system turn."""
    messages = [Message("system", draw(texts))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(words)), Message("assistant", draw(words))]
    return tuple(messages)


@st.composite
def tool_conversations(draw: st.DrawFn, thinking: bool) -> tuple[Message, ...]:
    """Questions, calls with their results, and answers, some of them with reasoning."""
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(Message("user", f"Question: {draw(words)}"))
        if draw(st.booleans()):
            call = draw(calls)
            messages.append(Message("assistant", "", (call,), draw(reasoning) if thinking else ""))
            messages.append(Message("tool", f"Result: {draw(words)}", name=call.name, tool_call_id=call.id))
        messages.append(Message("assistant", draw(words), thinking=draw(reasoning) if thinking else ""))
    return tuple(messages)


reasoning = st.just("") | words.filter(lambda text: "think>" not in text).map(str.strip)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}
