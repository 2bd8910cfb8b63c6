"""`pretokenized`: token ids in `input_ids`, as other tools store them, with `labels` or masks for the loss.

A label of -100 leaves its token out of the loss; any other is the token itself. lamina, as transformers, predicts each
token from those before it, so labels are not shifted. TRL's `completion_mask` and `assistant_masks` say the same with 1
and 0. Without any of these, every token is in the loss. Tokens whose `attention_mask` is 0 are padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Example, Kind, TokenRow
from lamina.data.formats._fields import RowError, has_label, has_pair

FIELDS = ("input_ids",)
OPTIONAL_FIELDS: tuple[str, ...] = ("labels", "attention_mask", "completion_mask", "assistant_masks")

# Label of a token that is not in the loss.
IGNORED = -100
_HIGHEST = 2**31 - 1


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has token ids."""
    ids = row.get("input_ids")
    return isinstance(ids, list) and all(map(_is_number, ids)) and not has_label(row) and not has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the tokens, without padding, and which of them are in the loss."""
    ids = _numbers(row, "input_ids")
    if ids is None:
        raise RowError("field 'input_ids' is missing")
    if wrong := [token for token in ids if not 0 <= token <= _HIGHEST]:
        raise RowError(f"field 'input_ids' contains {wrong[0]}, which is no token id")
    learned = [True] * len(ids)
    labels = _numbers(row, "labels", len(ids))
    if labels is not None:
        _check_labels(ids, labels)
        learned = [label != IGNORED for label in labels]
    for name in ("completion_mask", "assistant_masks"):
        mask = _numbers(row, name, len(ids))
        learned = learned if mask is None else [old and new != 0 for old, new in zip(learned, mask, strict=True)]
    kept = _not_padding(_numbers(row, "attention_mask", len(ids)), len(ids))
    return Example((), number, Kind.TEXT, tokens=TokenRow(tuple(ids[kept]), tuple(learned[kept])))


def _check_labels(ids: list[int], labels: list[int]) -> None:
    unlike = [place for place, pair in enumerate(zip(ids, labels, strict=True)) if pair[1] not in (IGNORED, pair[0])]
    if not unlike:
        return
    place = unlike[0]
    shifted = all(label in (IGNORED, token) for token, label in zip(ids[1:], labels, strict=False))
    why = "they are shifted by one, which lamina does itself" if shifted else "a label is its token, or -100"
    raise RowError(f"labels[{place}] is {labels[place]}, but input_ids[{place}] is {ids[place]}: {why}")


def _not_padding(attention: list[int] | None, length: int) -> slice:
    """Returns which tokens are no padding.

    Raises:
        RowError: Padding is in the middle.
    """
    if attention is None:
        return slice(0, length)
    seen = [place for place, attended in enumerate(attention) if attended]
    if not seen:
        return slice(0, 0)
    if len(seen) != seen[-1] + 1 - seen[0]:
        raise RowError("attention_mask has a 0 between ones: only padding at the ends can be left out")
    return slice(seen[0], seen[-1] + 1)


def _numbers(row: Mapping[str, Any], name: str, length: int | None = None) -> list[int] | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(map(_is_number, value)):
        is_text = isinstance(value, str)
        found = f": it is the text {value!r:.40}; as JSON, a list is [1, 2, 3], without quotes" if is_text else ""
        raise RowError(f"field {name!r} is not a list of whole numbers{found}")
    if length is not None and len(value) != length:
        raise RowError(f"field {name!r} has {len(value)} numbers, but input_ids has {length}")
    return [int(number) for number in value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int)
