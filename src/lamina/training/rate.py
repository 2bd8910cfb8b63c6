"""The learning rate of a run that was given none: the method's own, lowered for models wider than it was measured on.

The methods' own rates come from sweeps on a model of width 576 (docs/benchmarks.md, "Learning rates"). The best rate
falls with the model's width. Thinking Machines measured LoRA and full fine-tuning over fourteen models ("LoRA Without
Regret", 2025) and fitted rate ~ width ** -0.781 for Llama's family, with the same exponent for both; for Qwen's, the
rate hardly falls at all. The steeper law is used for every family, since a rate that is too low costs some steps, and
one that is too high a run. It gives LoRA 2.2e-4 and full fine-tuning 2.2e-5 at a width of 4,096.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from lamina.config import Config
from lamina.config.root import own_learning_rate
from lamina.progress import Notify

MEASURED_WIDTH = 576
EXPONENT = 0.781


def with_learning_rate(config: Config, model: PreTrainedModel, notify: Notify) -> Config:
    """Returns the configuration with the learning rate that fits the model, if none was given.

    Args:
        config: A complete configuration.
        model: The base.
        notify: Told when the rate is not the method's own.
    """
    own = own_learning_rate(config)
    given = "learning_rate" in config.train.model_fields_set
    factor = width_factor(model) if config.method.learning_rate_follows_width else 1.0
    if given or factor == 1.0:
        return config
    rate = float(f"{own * factor:.2g}")
    notify(
        f"train.learning_rate is {rate:g}: the default of {config.method.title}, {own:g}, was measured on a model of "
        f"width {MEASURED_WIDTH}, and wider ones want less (docs/choose.md). Set train.learning_rate to choose another."
    )
    train = config.train.model_copy(update={"learning_rate": rate})
    train.model_fields_set.discard("learning_rate")
    return config.model_copy(update={"train": train})


def width_factor(model: PreTrainedModel) -> float:
    """Returns what a learning rate of a model of width `MEASURED_WIDTH` is multiplied by for this one; at most 1."""
    width = getattr(model.config.get_text_config(), "hidden_size", None) or MEASURED_WIDTH
    return min(1.0, (MEASURED_WIDTH / int(width)) ** EXPONENT)
