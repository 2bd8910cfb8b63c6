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
import json
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tests.support.peft_matrix import FAMILIES, Outcome, all_cases, run_case


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
