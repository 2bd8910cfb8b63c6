"""Does things to a registry until it is killed: `python -m tests.support.registry_process PLACE WORK WHO SEED`.

WORK holds adapters `a0`, `a1`, ... and an export `x.tar`. After each thing that was done, a line is printed; what was
told is so for ever, whatever kills the process afterwards.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from lamina.errors import ConflictError, LaminaError
from lamina.registry.registry import Registry

ALIASES = ("prod", "canary")


def main(place: str, work: Path, who: str, seed: int) -> None:
    """Works until it is killed."""
    draw = random.Random(seed)
    registry = Registry(place, who=who)
    adapters = sorted(path for path in work.glob("a*") if path.is_dir())
    say("ready", None)
    while True:
        kind = draw.choice(
            ("add", "add", "promote", "promote", "alias", "rollback", "gc", "import", "folder", "export", "verify")
        )
        name, alias = draw.choice(("support", "help")), draw.choice(ALIASES)
        try:
            if kind == "add":
                say(kind, registry.add(draw.choice(adapters), name).version.digest, name)
            elif kind == "promote":
                moved = registry.promote(name, alias, override="test")
                say(kind, moved.after and moved.after.number, moved.alias)
            elif kind == "alias":
                say(kind, registry.set_alias(name, "stage").changed)
            elif kind == "rollback":
                say(kind, registry.rollback(f"{name}@{alias}").changed)
            elif kind == "gc":
                say(kind, registry.gc(window_days=0.0, last_targets=2, grace_seconds=draw.choice((-1.0, 5.0))).versions)
            elif kind == "import":
                say(kind, registry.import_archive(work / "x.tar", aliases=True).added)
            elif kind == "export":
                say(kind, registry.export([name], work / f"{who}.tar").versions)
            elif kind == "verify":
                say("refused" if (problems := registry.verify().problems) else kind, f"verify: {problems}")
            else:
                say(kind, registry.folder(name).name)
        except ConflictError:
            say("conflict", kind)
        except LaminaError as error:
            say("refused", f"{kind}: {error}")


def say(kind: str, value: object, name: str | None = None) -> None:
    """Prints what was done, at once."""
    print(json.dumps({"kind": kind, "value": value, "name": name}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
