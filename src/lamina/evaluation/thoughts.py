"""Log-likelihoods of references and choices after the prompts of a task's rows.

Prompts are those that answers are generated for. What follows is cut into tokens by itself, as a model would write it
after its prompt. Of plain text the whole is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lamina.engine.engine import Engine
from lamina.engine.generator import Reading, Request
from lamina.errors import ConfigError, DataError, Problem
from lamina.evaluation.asking import Speaker, turns_of
from lamina.evaluation.likelihood import rolling_log_likelihoods
from lamina.evaluation.scorers import Likelihood, Scorer
from lamina.evaluation.scoring import Thoughts, needs
from lamina.evaluation.tasks import TaskRow


def think(
    speaker: Speaker, rows: Sequence[TaskRow], scorers: Sequence[Scorer], progress: Callable[[int], None]
) -> list[Thoughts]:
    """What a subject thinks of the references and choices of rows.

    Args:
        speaker: Reads them.
        rows: What is asked.
        scorers: Say which of the two they need.
        progress: Called with how many texts are read.

    Raises:
        ConfigError: The subject is behind a URL, where no tokens can be read.
        DataError: A row has no choices, or one has no tokens.
    """
    reader = speaker.generator
    if not isinstance(reader, Engine) or speaker.template is None:
        names = ", ".join(scorer.name for scorer in scorers if scorer.needs != "answer")
        raise ConfigError(
            Problem("scorers", f"{names} needs log-likelihoods, which a URL does not give", "leave it out")
        )
    if not any(row.messages for row in rows):
        return [
            Thoughts(each) for each in rolling_log_likelihoods(reader, [r.reference for r in rows], speaker.adapter)
        ]
    wants_reference, wants_choices = needs(scorers, "likelihood"), needs(scorers, "choices")
    readings: list[Reading] = []
    counts: list[int] = []
    for row in rows:
        texts = _texts(row, wants_reference, wants_choices)
        readings += _readings(speaker, reader, row, texts)
        counts.append(len(texts))
    found = [
        Likelihood(
            sum(token.logprob for token in tokens),
            all(token.top[0][0] == token.token_id for token in tokens),
            len(tokens),
        )
        for tokens in reader.read(readings, progress)
    ]
    thoughts: list[Thoughts] = []
    place = 0
    for count in counts:
        own: list[Likelihood] = found[place : place + count]
        place += count
        thoughts.append(Thoughts(own[0], tuple(own[1:])) if wants_reference else Thoughts(None, tuple(own)))
    return thoughts


def _texts(row: TaskRow, wants_reference: bool, wants_choices: bool) -> list[str]:
    if wants_choices and not row.choices:
        raise DataError(f"{row.place}: has no choices. Fix: name them in the task, as `prompt: {{choices: COLUMN}}`.")
    return [*([row.reference] if wants_reference else []), *(row.choices if wants_choices else ())]


def _readings(speaker: Speaker, reader: Engine, row: TaskRow, texts: Sequence[str]) -> list[Reading]:
    template = speaker.template
    if template is None:
        return []
    try:
        prompt = template.render(turns_of(row, speaker.shown), row.tools, True, dict(row.template_kwargs) or None)
        before = reader.tokenize(Request(prompt=prompt, adapter=speaker.adapter))
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from None
    readings = []
    for text in texts:
        ids: list[int] = template.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if not ids:
            raise DataError(f"{row.place}: a text to be read has no tokens. Fix: give it some, or leave the row out.")
        readings.append(Reading([*before, *ids], len(before), speaker.adapter))
    return readings
