"""Given and filled-in settings stay distinguishable, however a configuration is passed on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamina.comparison.candidates import build_candidates
from lamina.config import METHOD_CONFIGS, Config, load_config, resolved_values
from lamina.config.optimizers import OPTIMIZERS
from lamina.config.root import default_learning_rate
from lamina.errors import ConfigError
from lamina.quickstart.settings import quickstart_settings
from lamina.runs import start_run

# Ways in which `load_config` reads a configuration again.
Again = Callable[[Config, Path], Any]
WAYS: dict[str, Again] = {
    "as it is": lambda config, folder: config,
    "as plain data": lambda config, folder: resolved_values(config),
    "as a run's config.yaml": lambda config, folder: _run_of(config, folder),
}

# The required settings of a method and of an optimizer.
NEEDS: dict[str, list[str]] = {
    "peft": ["method.peft_type=OFT"],
    "galore_adamw": ["method.type=full"],
    "galore_adamw_8bit": ["method.type=full"],
    "galore_adamw_layerwise": ["method.type=full", "train.max_grad_norm=0"],
    "badam": ["method.type=full"],
    "apollo_adamw": ["method.type=full"],
    "apollo_adamw_layerwise": ["method.type=full", "train.max_grad_norm=0"],
    "galore_adamw_8bit_layerwise": ["method.type=full", "train.max_grad_norm=0"],
}


def _run_of(config: Config, folder: Path) -> Path:
    path = folder / "run"
    start_run(config.model_copy(update={"output_dir": str(path)}), resume=False)
    return path / "config.yaml"


def values(**train: Any) -> dict[str, Any]:
    return {"data": {"train": "rows.jsonl"}, "train": train, "output_dir": "runs/x"}


def without_place(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"output_dir"})


@pytest.fixture(params=WAYS)
def again(request: pytest.FixtureRequest) -> Again:
    return WAYS[request.param]


@pytest.mark.parametrize("one", METHOD_CONFIGS)
def test_another_method_is_as_if_it_had_been_asked_for_at_once(one: str, again: Again, tmp_path: Path) -> None:
    first = load_config(values(), [f"method.type={one}", *NEEDS.get(one, [])] if one != "peft" else [])
    passed_on = again(first, tmp_path)
    for other in METHOD_CONFIGS:
        changes = [f"method.type={other}", *NEEDS.get(other, [])]
        found = load_config(passed_on, changes)
        assert without_place(found) == without_place(load_config(values(), changes))
        assert found.train.learning_rate == METHOD_CONFIGS[other].learning_rate


@pytest.mark.parametrize("one", OPTIMIZERS)
def test_another_optimizer_has_its_own_learning_rate(one: str, again: Again, tmp_path: Path) -> None:
    passed_on = again(load_config(values(), [f"train.optim={one}", *NEEDS.get(one, [])]), tmp_path)
    for other in OPTIMIZERS:
        found = load_config(passed_on, [f"train.optim={other}", *NEEDS.get(other, [])])
        assert found.train.learning_rate == default_learning_rate(type(found.method), other)


VARIANTS = {
    "": 1e-3,
    "method.init_lora_weights=pissa": 3e-4,
    "method.init_lora_weights=pissa_niter_4": 3e-4,
    "train.loraplus_lr_ratio=16": 3e-4,
    "train.loraplus_lr_ratio=true": 3e-4,
    "train.loraplus_lr_ratio=1": 1e-3,
    "method.init_lora_weights=olora": 1e-3,
}


@pytest.mark.parametrize("one", VARIANTS)
def test_pissa_and_loraplus_have_a_learning_rate_of_their_own(one: str, again: Again, tmp_path: Path) -> None:
    first = load_config(values(), [one] if one else [])
    assert first.train.learning_rate == VARIANTS[one]
    passed_on = again(first, tmp_path)
    changed = load_config(passed_on, ["method.init_lora_weights=true", "train.loraplus_lr_ratio=null"])
    assert changed.train.learning_rate == 1e-3
    assert load_config(passed_on, ["train.learning_rate=5e-4"]).train.learning_rate == 5e-4


def test_a_learning_rate_that_was_given_stays_even_if_it_is_a_default(again: Again, tmp_path: Path) -> None:
    for rate, given in itertools.product((1e-3, 3e-4), ("file", "override")):
        first = load_config(values(**({"learning_rate": rate} if given == "file" else {})))
        if given == "override":
            first = load_config(first, [f"train.learning_rate={rate}"])
        folder = tmp_path / f"{rate}-{given}"
        assert load_config(again(first, folder), ["method.type=full"]).train.learning_rate == rate
        assert load_config(again(first, folder / "2"), ["train.optim=lion"]).train.learning_rate == rate


def test_null_asks_for_the_methods_own(again: Again, tmp_path: Path) -> None:
    first = load_config(values(learning_rate=None))
    assert load_config(again(first, tmp_path), ["method.type=full"]).train.learning_rate == 1e-4
    given = load_config(again(load_config(values(learning_rate=5e-4)), tmp_path / "b"), ["train.learning_rate=null"])
    assert given.train.learning_rate == 1e-3


def test_nothing_changes_without_overrides(again: Again, tmp_path: Path) -> None:
    first = load_config(values(max_steps=3), ["method.r=4", "quantization={}", "data.eval=null", "seed=0"])
    second = load_config(again(first, tmp_path))
    assert without_place(second) == without_place(first)
    assert {*resolved_values(second)["given"]} == {*resolved_values(first)["given"]}
    assert {"method.r", "quantization", "data.eval", "seed", "train.max_steps"} <= {*resolved_values(first)["given"]}
    assert "train.learning_rate" not in resolved_values(first)["given"]


def test_settings_of_a_method_that_were_given_go_along_where_the_other_method_has_them(
    again: Again, tmp_path: Path
) -> None:
    passed_on = again(load_config(values(), ["method.r=8"]), tmp_path)
    assert load_config(passed_on, ["method.type=dora"]).method.model_dump()["r"] == 8
    assert "r" not in load_config(passed_on, ["method.type=full"]).method.model_dump()


def test_an_edit_by_hand_stays(tmp_path: Path) -> None:
    path = _run_of(load_config(values()), tmp_path)
    edited = yaml.safe_load(path.read_text())
    edited["train"]["learning_rate"], edited["data"]["max_length"] = 7e-4, 77
    path.write_text(yaml.safe_dump(edited))
    found = load_config(path, ["train.optim=lion"])
    assert (found.train.learning_rate, found.data.max_length) == (7e-4, 77)


@pytest.mark.parametrize("given", ["data.train", [1], {"data": 1}])
def test_a_record_of_what_was_given_that_is_none(given: object) -> None:
    with pytest.raises(ConfigError, match=r"given: got .*; must be the list of the settings"):
        load_config({**values(), "given": given})


def test_candidates_from_a_runs_configuration_have_their_own_learning_rates(tmp_path: Path) -> None:
    config = resolved_values(load_config(values(), ["method.r=8"]))
    built = build_candidates(config, tmp_path, methods=["lora", "vera", "full"])
    assert [candidate.config.train.learning_rate for candidate in built] == [1e-3, 1e-2, 1e-4]
    assert [candidate.config.method.model_dump().get("r") for candidate in built] == [8, 256, None]


def test_the_quickstarts_settings_are_for_its_own_method(tmp_path: Path) -> None:
    def settings(*changes: str) -> Config:
        return load_config(quickstart_settings("m", tmp_path / "a", tmp_path / "b", 0, changes), changes)

    assert settings("seed=3").train.learning_rate == 1.5e-3
    assert settings("method.type=full").train.learning_rate == 1e-4
    assert settings("method={type: ia3}").train.learning_rate == 3e-2
    assert settings("train.optim=lion").train.learning_rate == 1e-4
    assert settings("method.type=full", "train.learning_rate=3e-3").train.learning_rate == 3e-3
