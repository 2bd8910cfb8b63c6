"""The `loss:` section: fields of the chosen loss alone, combinations that mean something; and `method.from`."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lamina.config import load_config
from lamina.config.given import resolved_values
from lamina.config.losses import LOSS_CONFIGS, NO_LOSSES
from lamina.errors import ConfigError

DATA = {"data": {"train": "rows.jsonl"}}


def loaded(**values: Any) -> Any:
    return load_config({**DATA, **values})


@pytest.mark.parametrize("name", NO_LOSSES)
def test_a_loss_that_is_not_here_says_what_is(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(loss={"type": name})
    (problem,) = caught.value.problems
    assert problem.field == "loss.type"
    assert NO_LOSSES[name][0] in problem.message
    assert problem.fix
    if name == "ppo":
        assert "GRPO and RLOO replaced it" in problem.message and "DPO and KTO" in problem.message


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ({"type": "dpo", "simpo_gamma": 1.0}, "loss.type=simpo"),
        ({"type": "dpo", "ref_model": "x"}, "leave it out"),
        ({"type": "simpo", "gamma_beta_ratio": 0.5}, "times beta"),
        ({"type": "orpo", "reference": "base"}, "needs no reference"),
        ({"type": "dpo", "beta": 0.0}, "greater than 0"),
        ({"type": "dpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"type": "dpo", "label_smoothing": 0.1, "loss_type": ["hinge"]}, "no effect"),
        ({"type": "cpo", "label_smoothing": 0.1, "loss_type": "ipo"}, "no effect"),
        ({"type": "dpo", "loss_weights": [1.0, 2.0]}, "2 numbers for 1 losses"),
        ({"type": "dpo", "loss_type": ["sigmoid", "sigmoid"]}, "twice"),
        ({"type": "dpo", "loss_type": ["sft"]}, "does not read the rejected answers"),
        ({"type": "dpo", "loss_type": []}, "at least 1"),
        ({"type": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [0.0, 0.0]}, "nothing to learn"),
        ({"type": "dpo", "reference": "start"}, "method.from names none"),
        ({"type": "kto", "desirable_weight": "many"}, "auto"),
        ({"type": "distillation"}, "the student's own base"),
        ({"type": "distillation", "teacher": "x", "lmbda": 0.5}, "lamina generate"),
        ({"type": "distillation", "teacher": "x", "beta": 1.5}, "less than or equal to 1"),
    ],
)
def test_errors_say_what_to_do(loss: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(loss=loss)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", [name for name, cls in LOSS_CONFIGS.items() if cls.whole_rows])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"train_on": "all"}, "data.train_on"),
        ({"overlong": "cut"}, "data.overlong"),
        ({"packing_strategy": "wrapped"}, "data.packing_strategy"),
        ({"replay": {"path": "wiki.txt"}}, "data.replay"),
    ],
)
def test_rows_stay_whole(name: str, data: dict[str, Any], said: str) -> None:
    loss = {"type": name, **({"teacher": "x"} if name == "distillation" else {})}
    with pytest.raises(ConfigError, match=said):
        load_config({"data": {"train": "rows.jsonl", **data}, "loss": loss})


def test_a_single_loss_type_is_a_list_of_one() -> None:
    assert loaded(loss={"type": "dpo", "loss_type": "hinge"}).loss.loss_type == ["hinge"]


@pytest.mark.parametrize("name", [name for name in LOSS_CONFIGS if name != "distillation"])
def test_the_learning_rate_follows_the_loss(name: str) -> None:
    config = loaded(loss={"type": name})
    assert config.train.learning_rate == pytest.approx(1e-3 * LOSS_CONFIGS[name].learning_rate_factor)
    again = load_config(yaml.safe_load(yaml.safe_dump(resolved_values(config))), ["loss={type: cross_entropy}"])
    assert again.train.learning_rate == pytest.approx(1e-3), "it was not given, so it follows"
    assert load_config(resolved_values(config)) == config


def test_starting_from_an_adapter() -> None:
    config = loaded(method={"from": "runs/sft"}, loss={"type": "dpo"})
    assert config.method.start == "runs/sft"
    assert resolved_values(config)["method"] == {"from": "runs/sft", "type": "lora"}, "nothing that is not so"
    assert load_config(resolved_values(config)) == config
    assert load_config(config) == config
    dropout = loaded(method={"type": "dora", "from": "runs/sft", "lora_dropout": 0.1})
    assert resolved_values(dropout)["method"] == {"type": "dora", "from": "runs/sft", "lora_dropout": 0.1}
    with pytest.raises(ConfigError, match="remove lora_alpha, r"):
        loaded(method={"from": "runs/sft", "r": 8, "lora_alpha": 16})


@pytest.mark.parametrize("method", [{"type": "lora"}, {"type": "ia3"}, {"type": "peft", "peft_type": "OFT"}])
def test_a_new_adapters_settings_do_not_speak_of_a_start(method: dict[str, Any]) -> None:
    """They are stored in its file, whose digest must not change."""
    assert "from" not in loaded(method=method).method.model_dump(mode="json")
