"""Generates answers, in batches or as a stream, through the same template that training used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TextIteratorStreamer

from lamina.data.example import Message
from lamina.methods.greedy import contiguous_head_input
from lamina.methods.load import Loaded, load
from lamina.models.stops import with_stop_ids
from lamina.models.vocabulary import check_prompt, embedding_rows

DEFAULT_MAX_NEW_TOKENS = 256


def generate(
    source: str | Path | Loaded,
    prompts: Sequence[str],
    *,
    system: str | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    base: bool = False,
) -> list[str]:
    """Answers prompts.

    Args:
        source: A run directory, an adapter folder, or what `load` gave.
        prompts: One user turn each.
        system: A system turn before each.
        max_new_tokens: Longest answer.
        temperature: 0 is greedy.
        seed: For sampling.
        base: Let the bare base answer.

    Returns:
        One answer for each prompt, without its stop token.
    """
    loaded = source if isinstance(source, Loaded) else load(source)
    turns = [Message("system", system)] if system else []
    conversations = [[*turns, Message("user", prompt)] for prompt in prompts]
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if base:
        with loaded.injection.disabled():
            return answer(loaded, conversations, **options)
    return answer(loaded, conversations, **options)


@torch.no_grad()
def answer(
    loaded: Loaded,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answers conversations that end in a user turn, several at once; long and short ones are kept apart."""
    tokenizer = loaded.tokenizer
    texts = [loaded.template.render(turns, add_generation_prompt=True) for turns in conversations]
    ids = [_prompt_ids(loaded, text) for text in texts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    answers = [""] * len(ids)
    torch.manual_seed(seed)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = max(len(ids[index]) for index in chosen)
        filler = _filler(loaded)
        padded = torch.tensor([[filler] * (longest - len(ids[i])) + ids[i] for i in chosen])
        mask = torch.tensor([[0] * (longest - len(ids[i])) + [1] * len(ids[i]) for i in chosen])
        with contiguous_head_input(loaded.model):
            generated = loaded.model.generate(  # pyright: ignore[reportCallIssue]
                padded.to(loaded.model.device),
                attention_mask=mask.to(loaded.model.device),
                **_options(loaded, max_new_tokens, temperature),
            )
        for index, row in zip(chosen, generated[:, longest:].tolist(), strict=True):
            answers[index] = str(tokenizer.decode(_until_stop(row, _stop_ids(loaded)), skip_special_tokens=True))
        progress(first + len(chosen))
    return answers


def stream(
    loaded: Loaded,
    conversation: Sequence[Message],
    *,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    temperature: float = 0.0,
) -> Iterator[str]:
    """Answers one conversation, piece by piece as it is generated."""
    text = loaded.template.render(conversation, add_generation_prompt=True)
    ids = torch.tensor([_prompt_ids(loaded, text)], device=loaded.model.device)
    streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
    options = _options(loaded, max_new_tokens, temperature)
    failure: list[BaseException] = []

    def run() -> None:
        try:
            loaded.model.generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer, **options)  # pyright: ignore[reportCallIssue]
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]


def _options(loaded: Loaded, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    return {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": _stop_ids(loaded),
        "pad_token_id": _filler(loaded),
        **sampling,
    }


def _prompt_ids(loaded: Loaded, text: str) -> list[int]:
    """The tokens of a rendered prompt.

    Raises:
        DataError: The base has no row for one of them.
    """
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False).input_ids
    check_prompt(ids, loaded.model, loaded.template)
    return ids


def _filler(loaded: Loaded) -> int:
    """A token that fills up short prompts and is not looked at: the stop token, where the base has a row for it."""
    rows, stop = embedding_rows(loaded.model), loaded.template.stop_token_id
    return stop if rows is None or stop < rows else 0


def _stop_ids(loaded: Loaded) -> list[int]:
    config = loaded.model.generation_config
    return with_stop_ids(config.eos_token_id if config else None, loaded.template)  # pyright: ignore[reportAttributeAccessIssue]


def _until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
