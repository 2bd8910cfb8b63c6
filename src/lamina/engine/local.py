"""`LocalGenerator`: answers for a model in memory and the adapter on it, in the caller's own thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from lamina.chat.template import ChatTemplate
from lamina.engine.asking import Asker, build_asker, ignored_settings, reading_order, unknown_adapter
from lamina.engine.core import Core
from lamina.engine.generator import ADAPTER, Piece, Pieces, Reading, Request, TokenLogprobs
from lamina.engine.sampling import Sampling
from lamina.engine.sequence import Sequence as Asked
from lamina.engine.sequence import Voice
from lamina.engine.transformers_runner import Way
from lamina.engine.voices import Part, Runners, build_runners, virtual_tokens
from lamina.methods.shared.base import Injection
from lamina.models.copies import bare_copy
from lamina.models.vocabulary import embedding_rows


class LocalGenerator:
    """Answers for `ADAPTER`, the adapter that is attached to a model, and for its bare base.

    The model may be trained on between calls: each call reads the adapter as it is then.

    Attributes:
        template: Renders conversations.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        template: ChatTemplate,
        injection: Injection | None = None,
        *,
        batch_size: int | None = None,
        template_stops: bool = True,
        use_kernels: bool = True,
    ) -> None:
        """
        Args:
            model: A model with a language head, in evaluation mode.
            template: Renders conversations, and says what ends a turn.
            injection: The adapter on it, if there is one.
            batch_size: Requests that are answered at once; by default as many as the cache has room for.
            template_stops: Whether an answer ends where the template ends a turn; else only where the model's own files
                say, as in plain transformers.
            use_kernels: Whether to use the kernels where they can.
        """
        self.template = template
        self._model, self._injection = model, injection
        self._batch_size, self._template_stops, self._use_kernels = batch_size, template_stops, use_kernels
        self._runners: Runners | None = None
        self._asker: Asker | None = None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The one adapter, if there is one."""
        return () if self._injection is None else (ADAPTER,)

    @property
    def model(self) -> PreTrainedModel:
        """The base."""
        return self._model

    @property
    def slow_because(self) -> str | None:
        """Why the base does not run on the kernels; None where it does."""
        return self._built().reason

    def is_exact(self, adapter: str | None) -> bool:
        """Whether an answer is the same to the bit whatever is answered beside it: those of the kernels are."""
        return self._part(self._built(), adapter).reason is None

    def check(self, request: Request) -> None:
        """As the contract says."""
        if request.adapter is not None and request.adapter not in self.adapters:
            raise unknown_adapter(request.adapter, list(self.adapters))
        self._ask().tokens(request, self._virtual_tokens(request.adapter))

    def generate(self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None) -> list[Piece]:
        """As the contract says."""
        for request in requests:
            self.check(request)
        found: dict[int, Piece] = {}
        failed: list[BaseException] = []
        core, parts = self._start({request.adapter for request in requests})
        for number, request in enumerate(requests):

            def deliver(piece: Piece, number: int = number) -> None:
                found[number] = piece

            sequence = self._sequence(request, parts[request.adapter], deliver, failed.append, streams=False)
            core.add(sequence, parts[request.adapter].runner)
        done = 0
        try:
            while len(found) < len(requests) and core.step():
                if failed:
                    raise failed[0]
                if len(found) > done:
                    done = len(found)
                    progress(done)
            if failed:
                raise failed[0]
        finally:
            _leave(core)
        return [found[number] for number in range(len(requests))]

    def read(
        self, readings: Sequence[Reading], progress: Callable[[int], None] = lambda done: None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """As the contract says."""
        done: list[Piece] = []
        failed: list[BaseException] = []
        for name in {reading.adapter for reading in readings} - {None, *self.adapters}:
            raise unknown_adapter(str(name), list(self.adapters))
        core, parts = self._start({reading.adapter for reading in readings})
        begun: list[Asked] = []
        for reading in readings:
            part = parts[reading.adapter]
            voice = Voice(reading.adapter, part.weights, part.virtual_tokens)
            begun.append(self._ask().reading(reading, voice, done.append, failed.append))
        for number in reading_order(readings):
            core.add(begun[number], parts[readings[number].adapter].runner)
        told = 0
        try:
            while len(done) < len(readings) and not failed and core.step():
                if len(done) > told:
                    told = len(done)
                    progress(told)
            if failed:
                raise failed[0]
        finally:
            _leave(core)
        return [tuple(sequence.prompt_logprobs) for sequence in begun]

    def stream(self, request: Request) -> Pieces:
        """As the contract says."""
        self.check(request)
        pieces: list[Piece] = []
        failed: list[BaseException] = []
        core, parts = self._start({request.adapter})
        part = parts[request.adapter]
        sequence = self._sequence(request, part, pieces.append, failed.append, streams=True)
        core.add(sequence, part.runner)
        try:
            while core.step():
                if failed:
                    raise failed[0]
                yield from pieces
                pieces.clear()
        finally:
            sequence.end()
            _leave(core)

    def notes(self, sampling: Sampling) -> list[str]:
        """As the contract says."""
        return ignored_settings(self._model, sampling)

    def _start(self, adapters: set[str | None]) -> tuple[Core, dict[str | None, Part]]:
        """A core, and what answers for each of the adapters, as it is now."""
        runners = self._built()
        parts = {name: self._part(runners, name) for name in adapters}
        return Core(runners.all), parts

    def _part(self, runners: Runners, adapter: str | None) -> Part:
        if adapter is None:
            return runners.base()
        assert self._injection is not None
        return runners.part(self._injection.row_forms(), lambda: self._model, injection=self._injection)

    def _sequence(
        self,
        request: Request,
        part: Part,
        deliver: Callable[[Piece], None],
        fail: Callable[[BaseException], None],
        *,
        streams: bool,
    ) -> Asked:
        # The digest keys the cache, which lives as long as one call: the adapter may change between calls.
        voice = Voice(request.adapter, part.weights, part.virtual_tokens)
        return self._ask().sequence(request, voice, deliver, fail, streams=streams)

    def _virtual_tokens(self, adapter: str | None) -> int:
        return 0 if adapter is None else virtual_tokens(self._injection)

    def _ask(self) -> Asker:
        if self._asker is None:
            fused = self._built().fused
            capacity = None if fused is None else fused.blocks.count * fused.block_size
            self._asker = build_asker(self._model, self.template, capacity, self._template_stops)
        return self._asker

    def _built(self) -> Runners:
        if self._runners is None:
            injection = self._injection
            bare = self._model if injection is None else bare_copy(self._model)
            live = Way(self._model, contextlib.nullcontext if injection is None else injection.disabled)
            rows, stop = embedding_rows(self._model), self.template.stop_token_id
            self._runners = build_runners(
                bare,
                live,
                most_running=self._batch_size,
                filler=stop if rows is None or stop < rows else 0,
                use_kernels=self._use_kernels,
            )
        return self._runners


@torch.no_grad()
def _leave(core: Core) -> None:
    """Gives back what sequences hold, and forgets what was computed for them."""
    for scheduler in core.schedulers():
        for sequence in [*scheduler.running, *scheduler.waiting]:
            sequence.end()
            scheduler.leave(sequence)
        scheduler.forget_kept()
