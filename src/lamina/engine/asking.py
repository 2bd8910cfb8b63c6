"""From a request to a sequence: its tokens, its room, what ends it, and what it may not be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from lamina.chat.template import ChatTemplate
from lamina.engine.generator import Piece, Reading, Request
from lamina.engine.guides import Guides
from lamina.engine.prompts import prompt_ids
from lamina.engine.sampling import Sampling
from lamina.engine.sequence import Sequence, Voice
from lamina.errors import ConfigError, DataError, Problem
from lamina.models.stops import with_stop_ids
from lamina.models.vocabulary import check_prompt, embedding_rows, head_rows
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
# What a request can set, with the values that change nothing.
_SETTABLE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Asker:
    """Makes sequences of requests for one base.

    Attributes:
        model: The base.
        template: Renders conversations.
        most_positions: Positions that there are, of a table or in the cache; None where they do not end.
        template_stops: Whether an answer ends where the template ends a turn; else only where the model's own files
            say, as in plain transformers.
        guides: Compiles what answers must be.
    """

    model: PreTrainedModel
    template: ChatTemplate
    most_positions: int | None
    template_stops: bool
    guides: Guides

    def tokens(self, request: Request, virtual_tokens: int) -> list[int]:
        """The prompt's tokens.

        Raises:
            DataError: It cannot be asked.
        """
        return prompt_ids(request, self.template, self.model, self.room(virtual_tokens))

    def room(self, virtual_tokens: int) -> int | None:
        """Positions that there are for a prompt and its answer; None where they do not end."""
        return None if self.most_positions is None else self.most_positions - virtual_tokens

    def stop_ids(self, sampling: Sampling) -> frozenset[int]:
        """Tokens that end an answer."""
        own = (
            ()
            if sampling.ignore_stop_tokens
            else stop_tokens(self.model, self.template if self.template_stops else None)
        )
        return frozenset([*own, *sampling.stop_token_ids])

    def sequence(
        self,
        request: Request,
        voice: Voice,
        deliver: Callable[[Piece], None],
        fail: Callable[[BaseException], None],
        *,
        streams: bool,
    ) -> Sequence:
        """Makes the sequence of a request.

        Raises:
            ConfigError: What the answer must be cannot be compiled.
            DataError: It cannot be asked.
        """
        tokens = self.tokens(request, voice.virtual_tokens)
        sampling = request.sampling
        room = self.room(voice.virtual_tokens)
        guide = None if sampling.guide is None else self.guides.start(sampling.guide)
        return Sequence(
            tokens,
            voice,
            sampling,
            limit=sampling.max_tokens if room is None else min(sampling.max_tokens, room - len(tokens)),
            stop_ids=self.stop_ids(sampling),
            tokenizer=self.template.tokenizer,
            deliver=deliver,
            fail=fail,
            choice=request.choice,
            salt=request.salt,
            guide=guide,
            streams=streams,
        )

    def probe(
        self,
        ids: list[int],
        positions: list[int],
        voice: Voice,
        deliver: Callable[[Piece], None],
        fail: Callable[[BaseException], None],
    ) -> Sequence:
        """Makes a sequence that gives logits at positions of `ids` instead of an answer.

        Raises:
            DataError: There is no room for it.
        """
        room = self.room(voice.virtual_tokens)
        if room is not None and len(ids) > room:
            raise DataError(f"a probe has {len(ids)} tokens, and there is room for {room}.")
        plain = Sampling()
        return Sequence(
            ids,
            voice,
            plain,
            limit=1,
            stop_ids=frozenset(),
            tokenizer=self.template.tokenizer,
            deliver=deliver,
            fail=fail,
            wants=sorted(positions),
        )

    def reading(
        self,
        reading: Reading,
        voice: Voice,
        deliver: Callable[[Piece], None],
        fail: Callable[[BaseException], None],
    ) -> Sequence:
        """Makes a sequence that gives log-probabilities of a text's tokens instead of an answer.

        Raises:
            DataError: There is no room for it, or no row for one of its tokens.
        """
        ids, room = list(reading.token_ids), self.room(voice.virtual_tokens)
        if room is not None and len(ids) - 1 > room:
            raise DataError(
                f"a text has {len(ids)} tokens, and the base can read {room + 1}. Fix: shorten it, or read it in parts."
            )
        check_prompt(ids, self.model, self.template)
        return Sequence(
            ids[:-1],
            voice,
            Sampling(),
            limit=1,
            stop_ids=frozenset(),
            tokenizer=self.template.tokenizer,
            deliver=deliver,
            fail=fail,
            wants=list(range(reading.start - 1, len(ids) - 1)),
            targets=ids[reading.start :],
        )


def build_asker(
    model: PreTrainedModel, template: ChatTemplate, capacity: int | None, template_stops: bool = True
) -> Asker:
    """Builds the `Asker` of a base.

    Args:
        model: The base.
        template: Renders conversations.
        capacity: Positions that the cache holds for one sequence; None for no limit.
        template_stops: See `Asker`.
    """
    positions = declared_positions(model) if has_position_table(model) else None
    limits = [limit for limit in (positions, capacity) if limit is not None]
    vocabulary = head_rows(model) or embedding_rows(model) or len(template.tokenizer)
    stops = stop_tokens(model, template if template_stops else None)
    guides = Guides(template.tokenizer, vocabulary, [token for token in stops if token < vocabulary])
    return Asker(model, template, min(limits, default=None), template_stops, guides)


def stop_tokens(model: PreTrainedModel, template: ChatTemplate | None) -> list[int]:
    """Tokens that end an answer: the model's own, and those that end a turn of the template."""
    config: Any = model.generation_config
    return with_stop_ids(config.eos_token_id if config else None, template)


def default_sampling(model: PreTrainedModel) -> Sampling:
    """How the model's own generation_config.json draws: what answers a request that asks for nothing else.

    Raises:
        ConfigError: A value there is not allowed.
    """
    own = model.generation_config
    values = {} if own is None else own.to_dict()
    found = {name: values.get(name) for name in _SETTABLE}
    given = {name: value for name, value in found.items() if value is not None}
    if values.get("do_sample") is False:
        given["temperature"] = 0.0
    return Sampling(**{**_SETTABLE, **given})


def ignored_settings(model: PreTrainedModel, sampling: Sampling) -> list[str]:
    """What the base's generation_config.json would change in answers, in a sentence; empty for nothing."""
    own = model.generation_config
    if own is None:
        return []
    plain = GenerationConfig().to_dict()
    draws = sampling.temperature > 0
    ignored = _NO_MATTER if draws else _NO_MATTER | _OF_SAMPLING
    found = [
        f"{name}={value}"
        for name, value in own.to_dict().items()
        if name not in ignored
        and value
        and value != plain.get(name)
        and value != getattr(sampling, name, None)
        and not (value == 1 and name in _OFF_AT_ONE)
    ]
    if not found:
        return []
    what = "a draw from all tokens" if draws else "the most probable token each time"
    return [f"the base's generation_config.json sets {', '.join(found)}; answers are without it: {what}"]


def reading_order(readings: Iterable[Reading]) -> list[int]:
    """The order in which texts with the same beginning follow each other."""
    keys = [(reading.adapter or "", list(reading.token_ids)) for reading in readings]
    return sorted(range(len(keys)), key=keys.__getitem__)


def unknown_adapter(name: str, known: list[str]) -> ConfigError:
    """The error of a request for an adapter that is not there."""
    message = f"{name!r} is not an adapter that is loaded ({', '.join(map(repr, known)) or 'there is none'})"
    return ConfigError(Problem("request.adapter", message, "use one that is, or None for the bare base"))


def joined_logits(sequence: Sequence, positions: list[int]) -> torch.Tensor:
    """The logits of a probe in the order of `positions`, (positions, vocabulary)."""
    rows = torch.cat(sequence.logits)
    order = {place: row for row, place in enumerate(sorted(positions))}
    return rows[[order[place] for place in positions]]
