"""The oracle of generation: transformers' `generate`, with draws and stop tokens of lamina's own.

Answers are the model's own: the most probable token at temperature 0, a draw from all of them above it. What the base's
generation_config.json adds to that (repetition_penalty, top_k and the like) is left out, so that answers say what
training taught; `notes` names it. No other file calls a model's `generate` or knows transformers' classes around it.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from lamina.chat.template import ChatTemplate
from lamina.engine.generator import ADAPTER, Piece, Pieces, Request
from lamina.engine.prompts import prompt_ids
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection
from lamina.methods.shared.virtual_tokens import VirtualTokens
from lamina.models.stops import with_stop_ids
from lamina.models.vocabulary import embedding_rows
from lamina.structure.positions import declared_positions, has_position_table

# Of a generation_config.json, what says which tokens end an answer or fill a batch, or how it is computed, and so
# changes no answer.
_NO_MATTER = {"_from_model_config", "transformers_version", "max_length", "max_new_tokens", "do_sample", "temperature"}
_NO_MATTER |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "cache_implementation", "cache_config"}
# What 1 switches off; everything else is off without a value, or with 0.
_OFF_AT_ONE = {"repetition_penalty", "encoder_repetition_penalty", "length_penalty", "guidance_scale", "top_p"}
_OFF_AT_ONE |= {"typical_p", "num_beams", "num_beam_groups", "num_return_sequences"}
# What changes draws alone.
_OF_SAMPLING = {"top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


class TransformersGenerator:
    """Answers by transformers' `generate`, several requests at once; long and short prompts are kept apart.

    With a table of positions, answers end where it does. torch's own generators stay as they are.

    Attributes:
        template: Renders conversations.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        template: ChatTemplate,
        injection: Injection | None = None,
        *,
        batch_size: int = 32,
        template_stops: bool = True,
    ) -> None:
        """
        Args:
            model: In evaluation mode.
            template: What it was trained with.
            injection: The adapter on the model, which requests call `ADAPTER`; None for a model without one.
            batch_size: Requests that are answered at once.
            template_stops: Whether an answer ends where the template ends a turn; else only where the model's own files
                say, as in plain transformers.
        """
        self.template = template
        self._model, self._injection = model, injection
        self._batch_size, self._template_stops = batch_size, template_stops

    @property
    def adapters(self) -> tuple[str, ...]:
        """The one adapter, if there is one."""
        return () if self._injection is None else (ADAPTER,)

    def check(self, request: Request) -> None:
        """As the contract says."""
        self._prompt_ids(request)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None) -> list[Piece]:
        """As the contract says. Requests that differ in adapter or sampling are answered one kind after another."""
        prompts = [self._prompt_ids(request) for request in requests]
        kinds: list[tuple[Request, list[int]]] = []
        for number, request in enumerate(requests):
            alike = (own for first, own in kinds if _is_alike(first, request))
            found = next(alike, None)
            if found is None:
                kinds.append((request, [number]))
            else:
                found.append(number)
        answers: dict[int, Piece] = {}
        for first, numbers in kinds:
            done = len(answers)
            report = lambda more, done=done: progress(done + more)  # noqa: E731
            with self._answering(first.adapter):
                pieces = self._generate_alike([prompts[number] for number in numbers], first.sampling, report)
            answers |= zip(numbers, pieces, strict=True)
        return [answers[number] for number in range(len(requests))]

    def stream(self, request: Request) -> Pieces:
        """As the contract says. It generates in a thread, which ends with the answer, or when this is closed."""
        prompt, sampling = self._prompt_ids(request), request.sampling
        ids = torch.tensor([prompt], device=self._model.device)
        streamer = _Streamer(self.template.tokenizer, self._stop_ids(sampling))
        options = self._options(sampling, ids.shape[1], self._draws(sampling))
        abandoned = _Abandoned()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                with _without_own_settings(self._model):
                    self._model.generate(  # pyright: ignore[reportCallIssue]
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
        with self._answering(request.adapter):
            thread.start()
            try:
                yield from streamer  # pyright: ignore[reportReturnType]
            finally:
                abandoned.now = True
                thread.join()
        if failure:
            raise failure[0]

    def notes(self, sampling: Sampling) -> list[str]:
        """What the base's generation_config.json would change in the answers, in a sentence; empty for nothing."""
        own = self._model.generation_config
        if own is None:
            return []
        plain = GenerationConfig().to_dict()
        draws = sampling.temperature > 0
        ignored = _NO_MATTER if draws else _NO_MATTER | _OF_SAMPLING
        found = [
            f"{name}={value}"
            for name, value in own.to_dict().items()
            if name not in ignored and value and value != plain.get(name) and not (value == 1 and name in _OFF_AT_ONE)
        ]
        if not found:
            return []
        what = "a draw from all tokens" if draws else "the most probable token each time"
        return [f"the base's generation_config.json sets {', '.join(found)}; answers are without it: {what}"]

    def _generate_alike(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Callable[[int], None]
    ) -> list[Piece]:
        """Answers prompts that are sampled alike, from one generator of draws."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        device, filler, stops = self._model.device, self._filler(), set(self._stop_ids(sampling))
        draws, answers = self._draws(sampling), dict[int, Piece]()
        for first in range(0, len(order), self._batch_size):
            chosen = order[first : first + self._batch_size]
            longest = max(len(prompts[index]) for index in chosen)
            padded = torch.tensor([[filler] * (longest - len(prompts[i])) + prompts[i] for i in chosen])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
            options = self._options(sampling, longest, draws)
            with contiguous_head_input(self._model), _without_own_settings(self._model):
                generated = self._model.generate(  # pyright: ignore[reportCallIssue]
                    padded.to(device), attention_mask=mask.to(device), **options
                )
            for index, row in zip(chosen, generated[:, longest:].tolist(), strict=True):
                answers[index] = self._piece(row, stops)
            progress(first + len(chosen))
        return [answers[index] for index in range(len(prompts))]

    def _piece(self, row: list[int], stops: set[int]) -> Piece:
        end = next((index for index, token in enumerate(row) if token in stops), None)
        text = str(self.template.tokenizer.decode(row[:end], clean_up_tokenization_spaces=False))
        if end is None:
            return Piece(text, tuple(row), "length")
        return Piece(text, tuple(row[: end + 1]), "stop")

    def _prompt_ids(self, request: Request) -> list[int]:
        if request.adapter is not None and request.adapter not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "there is none"
            message = f"{request.adapter!r} is not an adapter that is loaded ({known})"
            raise ConfigError(Problem("request.adapter", message, "use one that is, or None for the bare base"))
        return prompt_ids(request, self.template, self._model, self._room())

    @contextlib.contextmanager
    def _answering(self, adapter: str | None) -> Iterator[None]:
        """The bare base, or the model as it is."""
        with self._injection.disabled() if self._injection and adapter is None else contextlib.nullcontext():
            yield

    def _options(self, sampling: Sampling, prompt: int, draws: torch.Generator) -> dict[str, Any]:
        room = self._room()
        processors: list[LogitsProcessor] = []
        if sampling.logit_bias:
            processors.append(_Bias(sampling.logit_bias))
        if sampling.temperature > 0:
            processors.append(_Draw(sampling.temperature, draws))
        return {
            "max_new_tokens": sampling.max_tokens if room is None else min(sampling.max_tokens, room - prompt),
            "eos_token_id": self._stop_ids(sampling) or None,
            "pad_token_id": self._filler(),
            "do_sample": False,
            "logits_processor": LogitsProcessorList(processors),
        }

    def _stop_ids(self, sampling: Sampling) -> list[int]:
        config: Any = self._model.generation_config
        own = config.eos_token_id if config else None
        ids = with_stop_ids(own, self.template if self._template_stops else None)
        return list(dict.fromkeys([*ids, *sampling.stop_token_ids]))

    def _draws(self, sampling: Sampling) -> torch.Generator:
        draws = torch.Generator(self._model.device)
        return draws.manual_seed(draws.seed() if sampling.seed is None else sampling.seed)

    def _filler(self) -> int:
        """A token that fills up short prompts and is not looked at: the stop token, where the base has a row for it."""
        rows, stop = embedding_rows(self._model), self.template.stop_token_id
        return stop if rows is None or stop < rows else 0

    def _room(self) -> int | None:
        """Positions that there are for tokens; None where they do not end."""
        positions = declared_positions(self._model)
        if positions is None or not has_position_table(self._model):
            return None
        whole = None if self._injection is None else self._injection.layers.get("")
        return positions - (whole.count if isinstance(whole, VirtualTokens) else 0)


@contextlib.contextmanager
def contiguous_head_input(model: PreTrainedModel) -> Iterator[None]:
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


@contextlib.contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Keeps the model's generation_config out of what is generated inside the block."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _is_alike(first: Request, second: Request) -> bool:
    return (first.adapter, first.sampling) == (second.adapter, second.sampling)


class _Bias(LogitsProcessor):
    """Adds to the scores of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._tokens, self._values = list(bias), list(bias.values())

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.float().clone()
        scores[:, self._tokens] += torch.tensor(self._values, device=scores.device)
        return scores


class _Draw(LogitsProcessor):
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


class _Streamer(TextIteratorStreamer):
    """Yields pieces rather than text, and no text for the token that ends the answer."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._stop_ids = set(stop_ids)
        self._new: list[int] = []
        self._stopped = False

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            token = int(value)
            self._new.append(token)
            if token in self._stop_ids:
                self._stopped = True
                return
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        new, self._new = tuple(self._new), []
        reason = ("stop" if self._stopped else "length") if stream_end else None
        self.text_queue.put(Piece(text, new, reason))
        if stream_end:
            self.text_queue.put(self.stop_signal)
