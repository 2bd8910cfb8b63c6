"""Which of peft's adapters lamina loads: peft's configurations x 22 families, each adapter saved by peft, loaded by
both, and compared by its logits.

    python benchmarks/peft_matrix.py [--families llama,gpt2] [--match LORA] [--share 0.33] [--seed 0]
                                     [--shard 1/6] [--json FILE]
    python benchmarks/peft_matrix.py --sum FILE FILE ...

`--shard K/N` runs every Nth case, so that N runs make the whole; a shard of 250 cases takes about 2 minutes on one
core. What peft itself cannot make, save or load counts as no case.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from tests.support.models_zoo import build_tokenizer
from tests.support.peft_matrix import FAMILIES, Case, build_family, cases_of, names_of
from tests.support.peft_pairs import logits, peft_logits, train_with_peft

import lamina
from lamina.errors import LaminaError
from lamina.machine.quiet import quiet_transformers

TOLERANCE = 1e-5  # of the largest logit


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        family, label: Which case.
        result: "loaded", "refused", "wrong", "crashed", or "none" if peft has no such adapter.
        method: By which of lamina's methods it was loaded.
        why: The reason of a refusal; the difference; the exception.
    """

    family: str
    label: str
    result: str
    method: str = ""
    why: str = ""


def run_case(case: Case, folder: Path) -> Outcome:
    """Saves an adapter with peft, and loads it with peft and with lamina.

    Args:
        case: Which.
        folder: For bases and adapters; a base is written once.
    """
    base, path = _base_folder(case.family, folder), folder / "adapter"
    shutil.rmtree(path, ignore_errors=True)
    try:
        with _silence():
            config: Any = getattr(peft, case.kind)(task_type="CAUSAL_LM", **case.fields)
            train_with_peft(build_family(case.family), config, path)
            expected = peft_logits(build_family(case.family), path)
    except Exception as error:  # whatever peft raises for what it has not
        return Outcome(case.family, case.label, "none", why=f"{type(error).__name__}: {error}"[:200])
    if not expected.isfinite().all():
        return Outcome(case.family, case.label, "none", why="peft's logits are not finite")
    try:
        with _silence():
            loaded = lamina.load(path, model=str(base), dtype="float32")
            found = logits(loaded.model)
    except LaminaError as error:
        return Outcome(case.family, case.label, "refused", why=str(error).replace(str(path), "PATH"))
    except Exception as error:  # a fault, which is what this looks for
        return Outcome(case.family, case.label, "crashed", why=f"{type(error).__name__}: {error}")
    difference = float((found - expected).abs().max())
    if difference <= TOLERANCE * float(expected.abs().max()):
        return Outcome(case.family, case.label, "loaded", loaded.injection.config.type)
    with _silence():
        again = float((peft_logits(build_family(case.family), path) - expected).abs().max())
    result = "none" if again > 0 else "wrong"  # an adapter that draws numbers whenever it is loaded
    return Outcome(case.family, case.label, result, loaded.injection.config.type, f"differs by {difference:.3g}")


def all_cases(families: Sequence[str]) -> list[Case]:
    """The whole matrix, or that of some families."""
    return [case for family in families for case in cases_of(family, names_of(build_family(family)))]


def report(outcomes: Sequence[Outcome]) -> str:
    """Counts of what was loaded, refused (by reason) and wrong."""
    counts = collections.Counter(each.result for each in outcomes)
    real = len(outcomes) - counts["none"]
    lines = [
        f"{real} adapters of peft ({counts['none']} more cases that peft cannot make, save or load)",
        "   ".join(f"{result} {counts[result]}" for result in ("loaded", "refused", "wrong", "crashed")),
        "loaded by: "
        + ", ".join(
            f"{method} {n}"
            for method, n in collections.Counter(e.method for e in outcomes if e.result == "loaded").most_common()
        ),
    ]
    for result in ("refused", "wrong", "crashed"):
        groups: dict[str, list[Outcome]] = collections.defaultdict(list)
        for each in outcomes:
            if each.result == result:
                groups[_kind_of(each.why)].append(each)
        for kind, members in sorted(groups.items(), key=lambda item: -len(item[1])):
            lines.append(f"\n{result} {len(members)}: {kind[:300]}")
            labels = collections.Counter(member.label for member in members)
            lines.append("    " + ", ".join(f"{label} ({n})" for label, n in labels.most_common(12)))
            lines.append(f"    such as {members[0].family}: {members[0].why[:600]}")
    return "\n".join(lines)


def _kind_of(why: str) -> str:
    """A reason without what is of one case alone."""
    why = re.sub(r"'[^']*'|\([^()]*\)|\[[^\]]*\]|\S*\.\S*\w|\d+", "_", why)
    return re.sub(r"\b(\w+For\w+|\w+LMHeadModel)\b", "MODEL", why)


def _base_folder(family: str, folder: Path) -> Path:
    path = folder / "bases" / family
    if not path.is_dir():
        with _silence():
            build_family(family).save_pretrained(path)
            build_tokenizer().save_pretrained(path)
    return path


@contextlib.contextmanager
def _silence() -> Any:
    with (
        warnings.catch_warnings(),
        quiet_transformers(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--match", default="", help="only cases whose label contains this")
    parser.add_argument("--share", type=float, default=1.0, help="a random share of the cases, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="1/1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sum", type=Path, nargs="+", help="report on files written by --json")
    given = parser.parse_args()
    if given.sum:
        print(report([Outcome(**each) for file in given.sum for each in json.loads(file.read_text())]))
        return
    torch.set_num_threads(1)
    cases = [case for case in all_cases(given.families.split(",")) if given.match in case.label]
    chosen = random.Random(given.seed).sample(cases, round(given.share * len(cases)))
    number, of = map(int, given.shard.split("/"))
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for count, case in enumerate(chosen[number - 1 :: of], start=1):
            outcomes.append(run_case(case, Path(folder)))
            if count % 50 == 0:
                print(f"{count} of {len(chosen[number - 1 :: of])}", file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in outcomes]))
    print(report(outcomes))


if __name__ == "__main__":
    main()
