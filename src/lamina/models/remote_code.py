"""Whether Python code that comes with a model may be run: only after the user has said so, for exactly this code.

Some models on the hub bring classes of their own (`auto_map` in their config.json). Loading such a model runs that
code, with all rights of the user. `trust_remote_code: true` allows it once: the digest of the code is remembered in the
user's cache, so that later commands on the same model need not be told again, and changed code is asked about again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lamina.cache.folder import cache_folder, writing_cache
from lamina.errors import ModelError

_FOLDER = "trusted_code"
# What asks for code, in which file.
_ASKING = ("config.json", "tokenizer_config.json")


def needed_code(folder: Path) -> list[str]:
    """Returns the classes that a model's files ask for, such as `modeling_own.OwnForCausalLM`; empty if none."""
    found: list[str] = []
    for name in _ASKING:
        path = folder / name
        content: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        asked = content.get("auto_map") if isinstance(content, dict) else None
        for value in asked.values() if isinstance(asked, dict) else ():
            found += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    return list(dict.fromkeys(found))


def allow_code(folder: Path) -> str:
    """Remembers that the code in a model folder may be run, as it is now.

    Returns:
        A sentence on what that means; empty if the model needs no code.

    Raises:
        ModelError: The code is in another repository, where it could change.
        StorageError: The cache cannot be written.
    """
    classes = needed_code(folder)
    if not classes:
        return ""
    elsewhere = next((name for name in classes if "--" in name), None)
    if elsewhere is not None:
        raise ModelError(
            f"{folder}: its code ({elsewhere}) is in another repository, where it may change at any time. Fix: copy "
            "that code into the model's folder, and name it in auto_map."
        )
    place = _place(folder)
    if not place.is_file():
        with writing_cache(place, "remembering that its code may be run"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{folder}\n", encoding="utf-8")
    return (
        f"trust_remote_code: runs Python code of the model ({', '.join(classes)}), which can do on this machine "
        "whatever you can. It is allowed as it is now; changed code is not."
    )


def is_allowed(folder: Path) -> bool:
    """Whether the code in a model folder may be run, as it is now."""
    return bool(needed_code(folder)) and _place(folder).is_file()


def refusal(folder: Path) -> str:
    """Builds the error message for a model that cannot be loaded without its code."""
    return (
        f"{folder}: config.json or tokenizer_config.json needs Python code from the model's repository (auto_map: "
        f"{', '.join(needed_code(folder))}), which lamina does not run unless you say so: it can do on this machine "
        "whatever you can. Fix: name a model whose architecture and tokenizer are part of transformers; or read that "
        "code, and allow it with `trust_remote_code: true` in the configuration."
    )


def _place(folder: Path) -> Path:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("**/*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return cache_folder() / _FOLDER / digest.hexdigest()
