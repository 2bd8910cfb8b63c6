"""What a user should know about a run's data as a whole, for its report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamina.chat.notes import notes_of, notes_on
from lamina.chat.template import ChatTemplate
from lamina.config import DataConfig
from lamina.data.encoded_file import EncodedFile
from lamina.data.remarks import file_notes
from lamina.data.side import Side


def dataset_notes(
    config: DataConfig,
    template: ChatTemplate,
    every: Sequence[EncodedFile],
    train: Side,
    evaluation: Side,
    held_out: Sequence[np.ndarray],
) -> list[str]:
    """Returns what a user should know about a run's data.

    Args:
        config: The `data:` section.
        template: Renders conversations.
        every: All files.
        train: The training side.
        evaluation: The evaluation side.
        held_out: For each training file, which of its stored rows are held out for evaluation.
    """
    facts = [file.store.facts for file in every]
    notes = notes_of(template)
    with_tools, with_thinking = any(f.with_tools for f in facts), any(f.with_thinking for f in facts)
    notes += notes_on(template, tools=with_tools, thinking=with_thinking)
    notes += file_notes(template, facts)
    for file in every:
        notes += file.notes
        if file.report.format == "text" and "label" in file.report.ignored_columns:
            notes.append(
                f"{file.report.path}: is read as plain text, without its labels; loss.type=classification trains a "
                "classifier"
            )
    if config.splits_off:
        notes += [
            f"{file.file.within} has a validation split: data.eval={file.file.own_eval} evaluates on it, instead of "
            "on a share of the training rows"
            for file in every
            if file.file.own_eval
        ]
        if not any(mask.any() for mask in held_out):
            notes.append("all rows have the same prompt, so no evaluation data could be split off without leakage")
        elif not len(evaluation):
            notes.append("every evaluation row was dropped, so nothing will be evaluated")
    elif config.eval is not None:
        notes += _leaks(every, train, evaluation)
    # A loss over the state of the last token teaches no stop.
    conversations = np.array([not file.is_text and not file.pooled for file in every])[train.pieces.file_index]
    untaught = int((conversations & ~train.pieces.teaches_stop).sum())
    if untaught:
        notes.append(
            f"{untaught} of {int(conversations.sum())} training examples do not have the stop token in the loss"
        )
    return notes


def read_twice(training: Sequence[EncodedFile]) -> list[str]:
    """Returns a warning for each file that is read twice, under the same name or another."""
    first: dict[str, EncodedFile] = {}
    twice = []
    for file in training:
        same = first.setdefault(file.report.sha256 or str(id(file)), file)
        if same is not file:
            what = "is read twice" if same.report.path == file.report.path else f"is identical to {same.report.path}"
            twice.append(
                f"{file.report.path} {what}, so its rows count twice in an epoch (use `weight` to do that on purpose)"
            )
    return twice


def _leaks(every: Sequence[EncodedFile], train: Side, evaluation: Side) -> list[str]:
    trained = np.concatenate([file.store.prompts[train.indices(file_index)] for file_index, file in enumerate(every)])
    notes = []
    for file_index, file in enumerate(every):
        index = evaluation.indices(file_index)
        # With kind="table", numpy 2.0 fails on 64-bit numbers that are close to each other.
        leaked = index[np.isin(file.store.prompts[index], trained, kind="sort")]
        if len(leaked):
            first = int(file.store.rows[leaked[0]])
            notes.append(
                f"{len(leaked)} evaluation rows have a prompt that is also in the training data (first: row {first})"
            )
    return notes
