"""Formats of models that reason: whose prompts open or close a reasoning section, or whose answers have a header.

The files in `reasoning/` are our own writing of what these formats do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.support.chat_families import FIXTURES, family_tokenizer
from tests.support.models_zoo import build_tokenizer

REASONING = Path(__file__).parent / "templates" / "reasoning"


@dataclass(frozen=True)
class ReasoningFamily:
    """A chat format.

    Attributes:
        special: Tokens that the tokenizer needs besides ChatML's.
        eos: Its EOS.
        opening: What is learned before the words of an answer without reasoning.
        closed: The same where the template is told not to reason; None where it cannot be told.
        reasoned: What is learned of an answer `42` after the reasoning `six times seven`, without its stop token.
        tools: Whether tools and calls have a place.
    """

    special: tuple[str, ...] = ()
    eos: str = "<|im_end|>"
    opening: str = ""
    closed: str | None = None
    reasoned: str = "<think>\nsix times seven\n</think>\n\n42"
    tools: bool = False


_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
_GRANITE = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
_OPENED = "six times seven\n</think>\n\n42"

FAMILIES = {
    "qwen3": ReasoningFamily(opening="<think>\n\n</think>\n\n", closed="", tools=True),
    "qwen3-thinking": ReasoningFamily(opening="\n</think>\n\n", reasoned=_OPENED, tools=True),
    "qwq": ReasoningFamily(opening="\n</think>\n\n", reasoned=_OPENED),
    "r1": ReasoningFamily(_DEEPSEEK, "<｜end▁of▁sentence｜>", opening="\n</think>\n\n", reasoned=_OPENED),
    "deepseek-v3.1": ReasoningFamily(_DEEPSEEK, "<｜end▁of▁sentence｜>", closed=""),
    "gpt-oss": ReasoningFamily(
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        "<|return|>",
        opening="<|channel|>final<|message|>",
        reasoned="<|channel|>analysis<|message|>six times seven<|end|><|start|>assistant<|channel|>final<|message|>42",
        tools=True,
    ),
    "granite3.3": ReasoningFamily(_GRANITE, "<|end_of_text|>", closed=""),
    "smollm3": ReasoningFamily(closed=""),
    "hunyuan": ReasoningFamily(
        ("<|hy_User|>", "<|hy_Assistant|>", "<|hy_end|>", "<|hy_sep|>"), "<|hy_end|>", closed=""
    ),
    "glm4.5": ReasoningFamily(
        ("<|user|>", "<|assistant|>", "<|observation|>", "<|system|>"),
        "<|endoftext|>",
        opening="\n<think></think>\n",
        closed="\n",
        reasoned="\n<think>six times seven</think>\n42",
        tools=True,
    ),
    "nemotron": ReasoningFamily(("<SPECIAL_11>", "<SPECIAL_12>"), "<SPECIAL_12>", "\n</think>\n\n", reasoned=_OPENED),
}


@cache
def reasoning_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One token a byte, with the family's special tokens, <think> and </think>, and its template."""
    if name in FIXTURES:
        return family_tokenizer(name, True)
    family = FAMILIES[name]
    tokenizer = build_tokenizer((REASONING / f"{name}.jinja").read_text(encoding="utf-8"))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.bos_token = family.special[0] if family.special[:1] == _DEEPSEEK[:1] else None
    tokenizer.eos_token = family.eos
    return tokenizer
