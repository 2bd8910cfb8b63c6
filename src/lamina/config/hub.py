"""Names of models on the hub: `ORG/NAME`, with a revision and a folder in the repository `ORG/NAME@REVISION:FOLDER`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@:\s]+))?(?::(?P<subfolder>[^@:\s]+))?")


@dataclass(frozen=True)
class HubPlace:
    """A model on the hub.

    Attributes:
        id: Its repository, `ORG/NAME`.
        revision: A branch, tag or commit; None for the main branch.
        subfolder: The folder of the model in the repository; None for the repository itself.
    """

    id: str
    revision: str | None = None
    subfolder: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.id}{revision}{f':{self.subfolder}' if self.subfolder else ''}"


def parse_hub(ref: str) -> HubPlace | None:
    """Reads the name of a model on the hub; None if it has another form.

    >>> parse_hub("org/name@v1.0:small")
    HubPlace(id='org/name', revision='v1.0', subfolder='small')
    >>> parse_hub("org/name"), parse_hub("name@prod"), parse_hub("a/b/c")
    (HubPlace(id='org/name', revision=None, subfolder=None), None, None)
    """
    match = _FORM.fullmatch(ref)
    if match is None or ".." in (match["subfolder"] or "").split("/"):
        return None
    return HubPlace(match["id"], match["revision"], match["subfolder"] and match["subfolder"].strip("/"))


def hub_reference(model: str, revision: str | None, subfolder: str | None) -> str:
    """Adds a revision and a folder to a model's name.

    Raises:
        ValueError: It is no model on the hub, or names another revision or folder.
    """
    place = parse_hub(model)
    if place is None:
        raise ValueError(f"revision and subfolder are of a model on the hub, and model is {model!r}; remove them")
    for name, own, given in (("revision", place.revision, revision), ("subfolder", place.subfolder, subfolder)):
        if own and given and own != given:
            raise ValueError(f"{name} is {given!r}, but model names {own!r}; set only one of them")
    found = parse_hub(str(HubPlace(place.id, revision or place.revision, subfolder or place.subfolder)))
    if found is None:
        raise ValueError(f"revision {revision!r} or subfolder {subfolder!r} is not one on the hub; correct it")
    return str(found)
