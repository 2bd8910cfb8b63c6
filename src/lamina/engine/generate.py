"""Generates answers, in batches or as a stream, through the same template that training used.

They are the model's own: the most probable token at temperature 0, a draw from all of them above it. What the base's
generation_config.json adds to that (repetition_penalty, top_k and the like) is left out, so that answers say what
training taught; `left_out_settings` names it.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from lamina.adapters.greedy import contiguous_head_input
from lamina.adapters.load import Loaded, load
from lamina.chat.message import Message
from lamina.errors import ConfigError, DataError, Problem
from lamina.methods.shared.virtual_tokens import VirtualTokens
from lamina.models.stops import with_stop_ids
from lamina.models.vocabulary import check_prompt, embedding_rows
from lamina.structure.positions import declared_positions, has_position_table

DEFAULT_MAX_NEW_TOKENS = 256

# Of a generation_config.json, what says which tokens end an answer or fill a batch, or how it is computed, and so
# changes no answer.
_NO_MATTER = {"_from_model_config", "transformers_version", "max_length", "max_new_tokens", "do_sample", "temperature"}
_NO_MATTER |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "cache_implementation", "cache_config"}
# What 1 switches off; everything else is off without a value, or with 0.
_OFF_AT_ONE = {"repetition_penalty", "encoder_repetition_penalty", "length_penalty", "guidance_scale", "top_p"}
_OFF_AT_ONE |= {"typical_p", "num_beams", "num_beam_groups", "num_return_sequences"}
# What changes draws alone.
_OF_SAMPLING = {"top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


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

    Raises:
        DataError: A prompt cannot be asked; the error says which, and nothing is given.
        ConfigError: The template has no place for the system turn.
    """
    loaded = source if isinstance(source, Loaded) else load(source)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "base": base}
    answers = generate_each(loaded, prompts, system=system, **options)
    for number, text in enumerate(answers, start=1):
        if isinstance(text, DataError):
            raise DataError(f"prompt {number}: {text}")
    return [str(text) for text in answers]


def generate_each(
    loaded: Loaded,
    prompts: Sequence[str],
    *,
    system: str | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    base: bool = False,
) -> list[str | DataError]:
    """As `generate`, but a prompt that cannot be asked gets its error for an answer and keeps no other from one.

    Raises:
        ConfigError: The template has no place for the system turn.
    """
    if system:
        check_system(loaded, system)
    turns = [Message("system", system)] if system else []
    results: list[str | DataError] = []
    asked: dict[int, list[Message]] = {}
    for number, prompt in enumerate(prompts):
        conversation = [*turns, Message("user", prompt)]
        try:
            prompt_ids(loaded, conversation)
        except DataError as error:
            results.append(error)
        else:
            results.append("")
            asked[number] = conversation
    with loaded.injection.disabled() if base else contextlib.nullcontext():
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        for number, text in zip(asked, answer(loaded, list(asked.values()), **options), strict=True):
            results[number] = text
    return results


def check_system(loaded: Loaded, system: str) -> None:
    """Finds out whether a conversation may begin with a system turn.

    Raises:
        ConfigError: It may not, with the template's reason.
    """
    try:
        prompt_ids(loaded, [Message("system", system), Message("user", "a")])
    except DataError as error:
        reason = str(error).partition(" Fix: ")[0]
        raise ConfigError(
            Problem("--system", f"cannot be used with this adapter: {reason}", "put its words into the first prompt")
        ) from None


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
    """Answers conversations that end in a user turn.

    Raises:
        DataError: A conversation cannot be asked; nothing is answered.
    """
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

    With a table of positions, answers end where it does. torch's own generators stay as they are.

    Returns:
        What the model wrote, to the letter, without its stop token.

    Raises:
        DataError: A prompt cannot be asked; nothing is answered.
    """
    tokenizer = loaded.tokenizer
    ids = [_text_ids(loaded, text) for text in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    answers = [""] * len(ids)
    generator = torch.Generator(loaded.model.device).manual_seed(seed)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = max(len(ids[index]) for index in chosen)
        filler = _filler(loaded)
        padded = torch.tensor([[filler] * (longest - len(ids[i])) + ids[i] for i in chosen])
        mask = torch.tensor([[0] * (longest - len(ids[i])) + [1] * len(ids[i]) for i in chosen])
        options = _options(loaded, max_new_tokens, longest, temperature, generator)
        with contiguous_head_input(loaded.model), _without_own_settings(loaded.model):
            generated = loaded.model.generate(  # pyright: ignore[reportCallIssue]
                padded.to(loaded.model.device), attention_mask=mask.to(loaded.model.device), **options
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
    seed: int | None = None,
) -> Iterator[str]:
    """Answers one conversation, piece by piece as it is generated.

    Generating ends with the answer, or with the iterator: one that is closed early leaves nothing running.

    Args:
        loaded: Base and adapter.
        conversation: Turns that end in a user's.
        max_new_tokens: Longest answer; with a table of positions it ends where that does.
        temperature: 0 is greedy.
        seed: For sampling; None for another answer each time.

    Raises:
        DataError: The conversation cannot be asked.
    """
    ids = torch.tensor([prompt_ids(loaded, conversation)], device=loaded.model.device)
    generator = torch.Generator(loaded.model.device)
    generator.manual_seed(generator.seed() if seed is None else seed)
    streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True)  # pyright: ignore[reportArgumentType]
    options = _options(loaded, max_new_tokens, ids.shape[1], temperature, generator)
    abandoned = _Abandoned()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with _without_own_settings(loaded.model):
                loaded.model.generate(  # pyright: ignore[reportCallIssue]
                    ids,
                    attention_mask=torch.ones_like(ids),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([abandoned]),
                    **options,
                )
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        yield from loaded.template.voice.stream(streamer)
    finally:
        abandoned.now = True
        thread.join()
    if failure:
        raise failure[0]


def prompt_ids(loaded: Loaded, conversation: Sequence[Message]) -> list[int]:
    """The tokens that a conversation's answer follows.

    Raises:
        DataError: The template refuses it, it is no text, or the model has no row for one of its tokens or positions.
    """
    return _text_ids(loaded, loaded.template.render(conversation, add_generation_prompt=True))


def _text_ids(loaded: Loaded, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the prompt holds {error.object[error.start]!r}, which is no character: its bytes are no UTF-8. Fix: send "
            "UTF-8 text."
        ) from None
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False).input_ids
    check_prompt(ids, loaded.model, loaded.template)
    room = _room(loaded)
    if room is not None and len(ids) >= room:
        raise DataError(
            f"the prompt has {len(ids)} tokens, and the base has positions for {room}, the answer's included. Fix: "
            "shorten it."
        )
    return ids


def left_out_settings(loaded: Loaded, temperature: float) -> str:
    """A sentence on what the base's generation_config.json would change in the answers; empty for nothing."""
    own = loaded.model.generation_config
    if own is None:
        return ""
    plain = GenerationConfig().to_dict()
    ignored = _NO_MATTER if temperature > 0 else _NO_MATTER | _OF_SAMPLING
    found = [
        f"{name}={value}"
        for name, value in own.to_dict().items()
        if name not in ignored and value and value != plain.get(name) and not (value == 1 and name in _OFF_AT_ONE)
    ]
    if not found:
        return ""
    what = "a draw from all tokens" if temperature > 0 else "the most probable token each time"
    return f"the base's generation_config.json sets {', '.join(found)}; answers are without it: {what}"


class _Sampling(LogitsProcessor):
    """Turns the largest score into a draw from softmax(scores / temperature), by a generator of its own (Gumbel's way).

    Args:
        temperature: Above 0.
        generator: On the scores' device.
    """

    def __init__(self, temperature: float, generator: torch.Generator) -> None:
        self._temperature, self._generator = temperature, generator

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        # From the largest down, in double precision: near 0 that alone is left, and at infinity all are alike.
        scores = scores.double()
        scaled = (scores - scores.max(-1, keepdim=True).values) / self._temperature
        scaled = scaled.nan_to_num(nan=float("-inf"))
        noise = (
            torch.empty_like(scaled).exponential_(generator=self._generator).clamp_min(torch.finfo(scaled.dtype).tiny)
        )
        return scaled - noise.log()


class _Abandoned(StoppingCriteria):
    """Ends generating when nobody waits for it any more.

    Attributes:
        now: Whether that is so.
    """

    now = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.now, device=input_ids.device)  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Keeps the base's generation_config out of what is generated inside the block."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _room(loaded: Loaded) -> int | None:
    """Positions that there are for tokens; None where they do not end."""
    positions = declared_positions(loaded.model)
    if positions is None or not has_position_table(loaded.model):
        return None
    whole = loaded.injection.layers.get("")
    return positions - (whole.count if isinstance(whole, VirtualTokens) else 0)


def _options(
    loaded: Loaded, max_new_tokens: int, prompt: int, temperature: float, generator: torch.Generator
) -> dict[str, Any]:
    room = _room(loaded)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens if room is None else min(max_new_tokens, room - prompt),
        "eos_token_id": _stop_ids(loaded),
        "pad_token_id": _filler(loaded),
        "do_sample": False,
    }
    if temperature > 0:
        options["logits_processor"] = LogitsProcessorList([_Sampling(temperature, generator)])
    return options


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
