"""How much sooner a fleet is done on Ray: some runs one after another, and on two nodes of one CPU in this machine.

    python benchmarks/fleets.py CONFIG [--runs 4] [--json]

The runs are CONFIG with the seeds 1, 2, ...; each has one thread on both sides, and both sides must give the same
adapters. Needs `pip install lamina[ray]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import yaml
from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

import lamina
from lamina.config import resolved_values
from lamina.fleet.executor import Placement
from lamina.fleet.fleet import build_members, run_fleet

NODES = 2
STORE = 100 * 2**20


def fleet(configs: list[str], folder: Path, placement: Placement) -> tuple[float, list[str | None]]:
    """Runs a fleet: its seconds, and the digests of the adapters."""
    began = time.perf_counter()
    report = run_fleet(build_members(configs, [], folder), folder, placement)
    return time.perf_counter() - began, [row.adapter_digest for row in report.rows]


def main() -> None:
    """Prints the seconds of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE}, shutdown_at_exit=True
    )
    for _ in range(NODES):
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    with tempfile.TemporaryDirectory() as name:
        folder, configs = Path(name), list[str]()
        values = resolved_values(lamina.load_config(arguments.config))
        for seed in range(1, arguments.runs + 1):
            path = folder / f"seed{seed}.yaml"
            path.write_text(yaml.safe_dump({**values, "seed": seed}), encoding="utf-8")
            configs.append(str(path))
        alone, expected = fleet(configs, folder / "local", Placement(cpus=1))
        placement = Placement("ray", jobs=NODES, options=(f"address={cluster.address}",))
        on_ray, found = fleet(configs, folder / "ray", placement)
    result = {"runs": arguments.runs, "one_after_another": alone, "ray": on_ray, "ratio": on_ray / alone}
    result["same_adapters"] = found == expected and None not in found
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
