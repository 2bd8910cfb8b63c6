"""Generates answers, in batches or as a stream, through the same template that training used."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TextIteratorStreamer

from lamina.data.example import Message
from lamina.methods.load import Loaded, load

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
    """Answers conversations that end in a user turn."""
    prompts = [loaded.template.render(turns, add_generation_prompt=True) for turns in conversations]
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "batch_size": batch_size}
    return [loaded.template.voice.read(text) for text in complete(loaded, prompts, **options, progress=progress)]


@torch.no_grad()
def complete(
    loaded: Loaded,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Goes on from rendered prompts, several at once; long and short ones are kept apart.

    Returns:
        What the model wrote, to the letter, without its stop token.
    """
    tokenizer = loaded.tokenizer
    ids: list[list[int]] = [tokenizer(text, add_special_tokens=False).input_ids for text in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    answers = [""] * len(ids)
    torch.manual_seed(seed)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = max(len(ids[index]) for index in chosen)
        stop = loaded.template.stop_token_id
        padded = torch.tensor([[stop] * (longest - len(ids[i])) + ids[i] for i in chosen])
        mask = torch.tensor([[0] * (longest - len(ids[i])) + [1] * len(ids[i]) for i in chosen])
        with _contiguous_head_input(loaded.model):
            generated = loaded.model.generate(  # pyright: ignore[reportCallIssue]
                padded.to(loaded.model.device),
                attention_mask=mask.to(loaded.model.device),
                **_options(loaded, max_new_tokens, temperature),
            )
        for index, row in zip(chosen, generated[:, longest:].tolist(), strict=True):
            written = _until_stop(row, _stop_ids(loaded))
            answers[index] = str(tokenizer.decode(written, clean_up_tokenization_spaces=False))
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
    ids = torch.tensor([loaded.tokenizer(text, add_special_tokens=False).input_ids], device=loaded.model.device)
    streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True)  # pyright: ignore[reportArgumentType]
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
    yield from loaded.template.voice.stream(streamer)
    thread.join()
    if failure:
        raise failure[0]


@contextlib.contextmanager
def _contiguous_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Lets the head see a contiguous input inside the block.

    After the prompt, transformers hands it the last position of each sequence as a strided view, and torch's linear on
    such a batch copies the head's weight once for each sequence: seconds, and gigabytes.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        handle.remove()


def _options(loaded: Loaded, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    return {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": _stop_ids(loaded),
        "pad_token_id": loaded.template.stop_token_id,
        **sampling,
    }


def _stop_ids(loaded: Loaded) -> list[int]:
    """The token that training taught to end with, and those that the base itself ends with."""
    own = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None  # pyright: ignore[reportAttributeAccessIssue]
    ids = own if isinstance(own, list) else [own] if own is not None else []
    return sorted({*loaded.template.stop_token_ids, *ids})


def _until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    end = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
