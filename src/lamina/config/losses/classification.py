"""`loss: {type: classification}`: trains a classifier. The math is in `losses/classification.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from lamina.config.losses.base import LossConfig

Label = Annotated[str, Field(min_length=1)]


class ClassificationConfig(LossConfig):
    """Sequence classification: a head over the state of a text's last token, trained with the adapter."""

    title: ClassVar[str] = "sequence classification"
    summary: ClassVar[str] = "trains a head that sorts texts into classes, and saves it with the adapter"
    learning_rate_factor: ClassVar[float] = 0.1
    data_format: ClassVar[str | None] = "classification"
    absent: ClassVar[Mapping[str, str]] = {
        "num_labels": "leave it out: it is the number of different labels, or of loss.labels",
        "id2label": "name the classes in loss.labels, in the order of their ids",
        "label2id": "name the classes in loss.labels, in the order of their ids",
        "modules_to_save": "leave it out: the head is always trained and saved with the adapter",
    }

    type: Literal["classification"] = "classification"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    labels: Annotated[list[Label], Field(min_length=2)] | None = None
    """The classes, in the order of their ids; a row's label is one of these names, or an id. Null takes the different
    labels of the data: numbers in their order, names in alphabetical order."""

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError("names a class more than once; name each once")
        return labels


CONFIG = ClassificationConfig
