"""lm-eval's `LM` over a lamina generator: log-likelihoods, rolling ones, and generation, as its `HFLM` gives them.

Imported only where lm-eval is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM

from lamina.chat.message import Message
from lamina.engine.generator import Reader, Request
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, Problem
from lamina.evaluation.likelihood import encode, log_likelihoods, longest_text, rolling_log_likelihoods

# What HFLM generates where a task does not say.
MAX_TOKENS = 256

# What tasks call the longest answer, in lm-eval's order.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

# Generation settings that are settings of a `Sampling` too.
_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# Settings that say how a text is computed, and so change no answer.
_NO_MATTER = ("use_cache",)


class LaminaLM(LM):
    """A generator, or one of its adapters, as lm-eval asks it.

    Attributes:
        reader: Answers.
        adapter: The adapter that answers; None is the bare base.
    """

    def __init__(
        self,
        reader: Reader,
        adapter: str | None = None,
        *,
        chat: bool = False,
        seed: int = 0,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        """
        Args:
            reader: Answers.
            adapter: The adapter that answers; None is the bare base.
            chat: Whether prompts are conversations in the generator's template, and answers end where it ends a turn.
            seed: Of answers that a task draws at random.
            progress: Called with what is done, how much of it, and how much there is.
        """
        super().__init__()
        self.reader, self.adapter = reader, adapter
        self._chat, self._seed, self._progress = chat, seed, progress
        self._tokenizer: Any = reader.template.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Names the template, for lm-eval's cache of requests."""
        return reader_digest(self.reader)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's digest in place of its text: all that lm-eval does with it is to write it down."""
        return self.reader.template.digest if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders a conversation."""
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
        return self.reader.template.render(turns, add_generation_prompt=add_generation_prompt)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Of continuations, and whether each is what the model would write."""
        pairs = [request.args for request in requests]
        found = log_likelihoods(self.reader, pairs, self.adapter, self._report("log-likelihoods", len(pairs)))
        return [(each.logprob, each.is_greedy) for each in found]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of whole texts."""
        texts = [request.args[0] for request in requests]
        report = self._report("log-likelihoods of texts", len(texts))
        return [each.logprob for each in rolling_log_likelihoods(self.reader, texts, self.adapter, report)]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers, each cut before the first of the task's stop strings."""
        asked, stops = [], []
        for request in requests:
            context, settings = request.args
            sampling, until = self._sampling(settings)
            ids = encode(self._tokenizer, context)[-self._room(sampling.max_tokens) :]
            asked.append(Request(token_ids=ids, adapter=self.adapter, sampling=sampling))
            stops.append(until)
        generator = self.reader
        pieces = generator.generate(asked, self._report("answers", len(asked)))
        return [self._text(piece.token_ids, until) for piece, until in zip(pieces, stops, strict=True)]

    def _text(self, ids: Sequence[int], until: Sequence[str]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        for stop in until:
            text = text.split(stop)[0]
        return text

    def _room(self, answer: int) -> int:
        room = longest_text(self.reader) - answer
        if room > 0:
            return room
        message = f"an answer of {answer} tokens leaves no room for a prompt in {longest_text(self.reader)} positions"
        raise ConfigError(Problem("generation_kwargs.max_gen_toks", message, "ask for shorter answers"))

    def _sampling(self, given: Mapping[str, Any]) -> tuple[Sampling, list[str]]:
        """The settings of a task, and what ends its answers.

        Raises:
            ConfigError: It has one that the engine does not know.
        """
        settings = {key: value for key, value in given.items() if value is not None and key not in _NO_MATTER}
        until = settings.pop("until", [])
        until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        limits = [settings.pop(name, None) for name in _LIMITS]
        limit = next((int(each) for each in limits if each is not None), MAX_TOKENS)
        draws = settings.pop("do_sample", bool(settings.get("temperature", 0.0)))
        sampled = {name: settings.pop(name) for name in _SAMPLED if name in settings}
        if settings:
            name = next(iter(settings))
            message = f"{settings[name]!r} is set by the task, and lamina's engine has no such setting"
            raise ConfigError(Problem(f"generation_kwargs.{name}", message, "leave it out of the task"))
        if draws:
            sampled.setdefault("temperature", 1.0)
        else:
            sampled = {key: value for key, value in sampled.items() if key == "repetition_penalty"}
        end = self._tokenizer.decode([self._tokenizer.eos_token_id])
        own = Sampling(
            max_tokens=limit,
            seed=self._seed,
            stop=tuple(stop for stop in dict.fromkeys(until) if stop != end),
            stop_token_ids=() if self._chat else self._ends(),
            ignore_stop_tokens=not self._chat,
            **sampled,
        )
        return own, [*until, end]

    def _ends(self) -> tuple[int, ...]:
        """Tokens that end a text in plain transformers: those of the model's own files."""
        config: Any = self.reader.model.generation_config
        given = config.eos_token_id if config else None
        own = [] if given is None else [given] if isinstance(given, int) else list(given)
        return tuple(dict.fromkeys([*own, self._tokenizer.eos_token_id]))

    def _report(self, what: str, total: int) -> Callable[[int], None]:
        return lambda done: self._progress(what, done, total)


def reader_digest(reader: Reader) -> str:
    """What prompts depend on."""
    return f"{reader.template.digest}+{reader.template.tokenizer_digest}"
