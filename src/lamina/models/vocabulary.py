"""Checks token ids against the rows of the embedding: a tokenizer may have tokens that its base has no rows for.

That happens if tokens were added to a tokenizer and the embedding was not resized. It is harmless as long as no text
contains such a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from lamina.chat.message import Message
from lamina.chat.template import BUILTIN_TEMPLATES, ChatTemplate, build_template
from lamina.chat.template_source import FALLBACK_TEMPLATE
from lamina.data.dataset import Dataset
from lamina.data.side import Side
from lamina.errors import DataError, LaminaError
from lamina.models.read import skeleton
from lamina.models.remote_code import is_allowed

_ASKED = (Message("user", "a"), Message("assistant", "b"))


def embedding_rows(model: PreTrainedModel) -> int | None:
    """Returns the rows of the input embedding, also if an adapter wraps it; None if it is not an `nn.Embedding`."""
    tables = (module for module in model.get_input_embeddings().modules() if isinstance(module, nn.Embedding))
    return next((table.num_embeddings for table in tables), None)


def head_rows(model: PreTrainedModel) -> int | None:
    """Returns the number of tokens that the head predicts; None if it is not an `nn.Linear`."""
    head = model.get_output_embeddings()
    return head.out_features if isinstance(head, nn.Linear) else None


def positions_in(folder: Path) -> int | None:
    """Returns the positions of a model in a folder, by its config; None if that does not say, or cannot be read."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    declared = getattr(config.get_text_config(), "max_position_embeddings", None)
    return declared if isinstance(declared, int) and declared > 0 else None


def declared_rows(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Finds the rows of the embedding of a model in a folder, without loading its weights.

    Returns `vocab_size` of the configuration if that suffices for the tokenizer: a few models have more rows, none
    fewer.

    Returns:
        The number of rows; None if it cannot be found.
    """
    try:
        declared = (
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=is_allowed(folder))
            .get_text_config()
            .vocab_size
        )
        if highest_id(tokenizer) < declared:
            return declared
        return embedding_rows(skeleton(folder))
    except Exception:  # of any kind: loading the model will report it
        return None


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the highest id of the tokenizer."""
    return max(tokenizer.get_vocab().values(), default=-1)


def check_vocabulary(dataset: Dataset, model: PreTrainedModel, template: ChatTemplate) -> None:
    """Checks that every token of a dataset has a row in the embedding, and every token in the loss a row in the head.

    Args:
        dataset: The dataset.
        model: A base without an adapter.
        template: The chat template that rendered the rows.

    Raises:
        DataError: A token has no row; the message names the first such row of the data.
    """
    rows, learnt = embedding_rows(model), head_rows(model)
    for side in (dataset.train, dataset.eval):
        for limit, what in ((rows, "embedding"), (learnt, "head")):
            if limit is not None and (found := side.first_beyond(limit, in_loss=what == "head")) is not None:
                file = dataset.report.files[found.file_index].path
                where = f"{file}: row {found.row}"
                raise DataError(_message(where, found.token, limit, what, template.tokenizer, _fixes(template, limit)))


def check_side(side: Side, names: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that every token of evaluation data has a row in the embedding.

    Args:
        side: The rows.
        names: The names of their files.
        model: A base, with or without an adapter.
        tokenizer: The base's tokenizer.

    Raises:
        DataError: A token has no row in the embedding.
    """
    rows = embedding_rows(model)
    if rows is not None and (found := side.first_beyond(rows)) is not None:
        where = f"{names[found.file_index]}: row {found.row}"
        raise DataError(_message(where, found.token, rows, "embedding", tokenizer, ["leave the row out"]))


def check_ids(
    ids: Sequence[int] | np.ndarray, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str, fix: str
) -> None:
    """Checks that every token of a text has a row in the embedding.

    Args:
        ids: The text's token ids.
        model: A base, with or without an adapter.
        tokenizer: The tokenizer of the ids.
        where: What the text is, for the message.
        fix: The fix, for the message.

    Raises:
        DataError: A token has no row in the embedding.
    """
    rows, found = embedding_rows(model), np.asarray(ids)
    if rows is not None and (found >= rows).any():
        token = int(found[found >= rows][0])
        raise DataError(_message(where, token, rows, "embedding", tokenizer, [fix]))


def check_prompt(ids: Sequence[int], model: PreTrainedModel, template: ChatTemplate) -> None:
    """Checks that every token of a rendered prompt has a row in the embedding.

    Args:
        ids: The prompt's token ids.
        model: A base, with or without an adapter.
        template: The chat template that rendered it.

    Raises:
        DataError: A token has no row in the embedding.
    """
    rows, fix = embedding_rows(model), "leave it out of the prompt"
    if rows is not None and max(ids, default=0) >= rows and not _fits(template, rows):
        name = _fitting(template, rows) or "one of your own"
        fix = f"the chat template writes it, so train with another, such as data.chat_template={name}"
    check_ids(ids, model, template.tokenizer, "the prompt", fix)


def _message(
    where: str, token: int, rows: int, what: str, tokenizer: PreTrainedTokenizerBase, fixes: Sequence[str]
) -> str:
    text = tokenizer.convert_ids_to_tokens(token)
    return (
        f"{where} has the token {token} ({text!r}), but the base's {what} has {rows} rows. Fix: {', or '.join(fixes)}."
    )


def resize_fix(tokenizer: PreTrainedTokenizerBase) -> str:
    """Describes how to resize a base's embedding for all tokens, for messages."""
    return (
        "resize the base's embedding (in transformers: "
        f"model.resize_token_embeddings({highest_id(tokenizer) + 1}), then save_pretrained of model and tokenizer) and "
        "name the new folder as the model"
    )


def _fixes(template: ChatTemplate, rows: int) -> list[str]:
    """Lists fixes for training: another template if the template itself writes such tokens, else other rows."""
    resize = resize_fix(template.tokenizer)
    if _fits(template, rows):
        return ["leave the token out of the data", resize]
    fitting = _fitting(template, rows)
    return [f"set data.chat_template={fitting}, which writes no such token", resize] if fitting else [resize]


def _fitting(template: ChatTemplate, rows: int) -> str:
    """Finds a built-in template whose tokens all have rows; empty if there is none."""
    names = sorted(BUILTIN_TEMPLATES, key=lambda name: name != FALLBACK_TEMPLATE)
    return next((name for name in names if _builtin_fits(template, name, rows)), "")


def _builtin_fits(template: ChatTemplate, name: str, rows: int) -> bool:
    try:
        return _fits(build_template(template.tokenizer, name, template.thinking), rows)
    except LaminaError:
        return False


def _fits(template: ChatTemplate, rows: int) -> bool:
    """Whether all tokens that the template itself writes have rows."""
    text = template.render(_ASKED)
    return max(template.tokenizer(text, add_special_tokens=False).input_ids, default=-1) < rows
