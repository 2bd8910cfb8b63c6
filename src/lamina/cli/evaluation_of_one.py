"""`lamina eval` of one adapter: its loss and scores beside those of its base, in one process or in several."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.cli.answers import print_one
from lamina.cli.output import Bars, advising_column, check_target, notify, out, print_json
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.distributed.group import Group


def evaluate_one(
    answers: int,
    page: Path | None,
    general: bool,
    source: str,
    data: str | None,
    mapping: dict[str, str] | None,
    scorers: Sequence[str],
    max_new_tokens: int | None,
    max_rows: int | None,
    predictions: Path | None,
    chat: bool | None,
    model: str | None,
    allow_base_mismatch: bool,
    as_json: bool,
    group: Group | None,
) -> None:
    """Evaluates one adapter beside its base, and prints what was found; see `lamina eval` for the arguments.

    Of several processes in a `group`, which share the work, the first one prints and writes.

    Raises:
        ConfigError: Options contradict each other, or there are no rows to evaluate on.
    """
    if predictions is not None and not scorers:
        raise ConfigError(
            Problem("--predictions", "has nothing to write without --exact-match or --score", "add --exact-match")
        )
    check_target("--predictions", predictions)
    check_target("--html", page)
    if max_new_tokens is not None and not scorers and not answers:
        raise ConfigError(
            Problem("--max-new-tokens", "has no effect without answers", "add --exact-match, or remove --answers 0")
        )
    if mapping and data is None:
        raise ConfigError(Problem("--column", "maps the columns of --data, which is not given", "add --data FILE"))
    from lamina.distributed.world import ALONE
    from lamina.engine.sampling import DEFAULT_MAX_TOKENS
    from lamina.evaluation.evaluate import evaluate as evaluate_adapter
    from lamina.files import write_text

    is_first = group is None or group.is_first
    with advising_column() if data is not None else contextlib.nullcontext(), Bars() as bars:
        result = evaluate_adapter(
            source,
            data,
            columns=mapping,
            max_rows=max_rows,
            score=list(dict.fromkeys(scorers)),
            answers=answers,
            general=general,
            max_new_tokens=max_new_tokens or DEFAULT_MAX_TOKENS,
            model=model,
            allow_base_mismatch=allow_base_mismatch,
            chat=chat,
            progress=bars.update if is_first else lambda what, done, total: None,
            notify=notify if is_first else lambda message: None,
            world=group or ALONE,
        )
    if not is_first:
        return
    if predictions is not None:
        lines = [json.dumps(vars(prediction), ensure_ascii=False) for prediction in result.predictions]
        write_text(predictions, "\n".join(lines) + "\n")
    if page is not None:
        from lamina.evaluation.answers_page import answers_page

        write_text(page, answers_page(result, source))
    if as_json:
        print_json(result.as_json())
        return
    print_one(result, answers)
    if page is not None:
        out.print(f"page: {page}", markup=False)
