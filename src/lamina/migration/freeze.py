"""LLaMA-Factory's `finetuning_type: freeze`: the weights of some layers are trained, by patterns of their names.

With `use_llama_pro` these are the new blocks of a model that LLaMA-Factory's script has expanded (LLaMA Pro, Wu et al.
2024, arXiv:2401.02415): every n-th layer, the last one among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lamina.dialects.values import names
from lamina.errors import ModelError
from lamina.migration.draft import Draft

SETTINGS = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
_LAYERS = 2
_COUNTS = ("num_hidden_layers", "num_layers", "n_layer")


def freeze(draft: Draft, name: str, given: Mapping[str, Any], spread: bool = False) -> None:
    """Sets `method.parameters` to the layers that are trained.

    Args:
        draft: The translation.
        name: The setting that asks for it, for the table.
        given: The settings of `SETTINGS` that are there.
        spread: Whether they are LLaMA Pro's new blocks.
    """
    layers, extra = given.get("freeze_trainable_layers"), names(given.get("freeze_extra_modules") or [])
    wanted = _LAYERS if layers is None else int(layers)
    if wanted == 0 and not extra:
        draft.missing(name, "freeze", "no layer is trained: set freeze_trainable_layers", "method.parameters")
        return
    numbers = _new_blocks(draft, name, wanted) if spread else _at_an_end(draft, name, wanted)
    if numbers is None:
        return
    modules = names(given.get("freeze_trainable_modules") or "all")
    inner = "" if "all" in modules else f"({'|'.join(modules)})[.]"
    patterns = [f"[^0-9]*[.]({'|'.join(map(str, numbers))})[.]{inner}"] if numbers else []
    patterns += [f".*\\b{module}[.]" for module in extra]
    draft.set(name, "freeze", {"method.type": "full", "method.parameters": patterns}, "the weights of these layers")


def adapt_new_blocks(draft: Draft, layers: Any) -> None:
    """Sets `method.layers_to_transform` of an adapter to LLaMA Pro's new blocks, of which there are `layers`."""
    numbers = _new_blocks(draft, "use_llama_pro", _LAYERS if layers is None else int(layers))
    if numbers is not None:
        draft.set("use_llama_pro", True, {"method.layers_to_transform": numbers}, "the adapter is on the new blocks")


def _at_an_end(draft: Draft, name: str, wanted: int) -> list[int] | None:
    """The last layers, or the first ones (a negative number); None if their numbers are not known."""
    if wanted <= 0:
        return list(range(-wanted))
    count = _count(draft, name, f"the last {wanted}", "30|31")
    return None if count is None else list(range(max(0, count - wanted), count))


def _new_blocks(draft: Draft, name: str, wanted: int) -> list[int] | None:
    """The new blocks of an expanded model; None if their numbers are not known."""
    count = _count(draft, name, f"the {wanted} new ones", "4|9|14")
    if count is None:
        return None
    if wanted <= 0 or count % wanted:
        reason = f"the model's {count} layers are no multiple of it, so it was not expanded by so many blocks"
        draft.missing("freeze_trainable_layers", wanted, reason, "method.parameters")
        return None
    return list(range(count // wanted - 1, count, count // wanted))


def _count(draft: Draft, name: str, which: str, example: str) -> int | None:
    """The number of the base's layers; None, and a row that says so, if it is not known."""
    base = str(draft.given.get("model_name_or_path") or draft.given.get("model") or "")
    if (count := layers_of(base, draft.folder)) is not None:
        return count
    reason = (
        f"which layers are {which} is in the model's config.json, which is not on this machine: "
        f"`hf download {base} config.json`; or name them: `method: {{type: full, parameters: "
        f"['[^0-9]*[.]({example})[.]']}}`"
    )
    draft.missing(name, draft.given.get(name, "freeze"), reason, "method.parameters")
    return None


def layers_of(base: str, folder: Path) -> int | None:
    """Returns the number of a model's layers by its config.json; None if that is not on this machine.

    Args:
        base: A folder, or an id on the hub.
        folder: Where relative paths start, beside the working directory.

    Raises:
        ModelError: The config.json is damaged, or does not say the number.
    """
    places: list[Any] = [folder / base / "config.json", Path(base) / "config.json"]
    if base.count("/") == 1:
        places.append(try_to_load_from_cache(base, "config.json"))
    for place in places:
        if isinstance(place, str | Path) and Path(place).is_file():
            return _layers_in(Path(place))
    return None


def _layers_in(path: Path) -> int:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("text_config") or content
        return next(content[name] for name in _COUNTS if isinstance(content.get(name), int))
    except StopIteration:
        reason = f"it has no {', '.join(_COUNTS)}"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise ModelError(
        f"{path}: does not say how many layers the model has ({reason}). Fix: copy or download the model's config.json "
        "again; or name the layers: `method: {type: full, parameters: ['[^0-9]*[.](30|31)[.]']}`."
    )
