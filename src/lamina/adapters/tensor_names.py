"""Finds the tensors of a file of peft's under the names that a model has for them.

Files differ from what peft's `save_pretrained` writes where training wrote them itself: names then also say how the
model was wrapped for several processes or for compiling, or how the adapter was called in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names.
WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))


@dataclass(frozen=True)
class Places:
    """Where tensors belong.

    Attributes:
        names: For each tensor that has a place, by its name in the file, the name that the model has for it.
        removed: Parts that were in the file's names and are not in the model's, in alphabetical order.
    """

    names: dict[str, str]
    removed: list[str]


def find_places(found: Iterable[str], wanted: Collection[str]) -> Places:
    """Matches names: as they are, without what wraps a model, or without one part more that all the others have too.

    >>> find_places(["a.module.lora_A.default.weight"], ["a.lora_A.weight"]).removed
    ['default', 'module']
    """
    found, free = list(found), set(wanted)
    names = {name: name for name in found if name in free}
    free -= names.keys()
    removed: set[str] = set()
    others: dict[str, tuple[str, str]] = {}  # by name in the file: the part that is too many, and the name without it
    for name in found:
        if name in names:
            continue
        parts = name.split(".")
        bare = [part for part in parts if part not in WRAPPERS]
        if ".".join(bare) in free:
            names[name] = ".".join(bare)
            removed |= set(parts) & WRAPPERS
            continue
        for place, part in enumerate(bare):
            shorter = ".".join(bare[:place] + bare[place + 1 :])
            if shorter in free:
                others[name] = (part, shorter)
    # An adapter's name stands in all of its tensors; a part that only some of them have is another module.
    if len({part for part, _ in others.values()}) == 1 and len(others) + len(names) >= len(set(wanted)):
        for name, (part, shorter) in others.items():
            names[name] = shorter
            removed |= {part, *(WRAPPERS & set(name.split(".")))}
    if len(set(names.values())) < len(names):  # two for one place: nothing tells which is meant
        names = {name: name for name in found if name in set(wanted)}
        removed = set()
    return Places(names, sorted(removed))
