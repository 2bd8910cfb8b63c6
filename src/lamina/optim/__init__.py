"""Optimizers, one file each, and learning-rate schedules.

`NAME.py` is the optimizer of `train.optim: NAME`, and defines `build(config, groups)`; `config/optimizers/NAME.py` has
its settings. A group is a parameter group of torch's optimizers, with `params`, `weight_decay`, `lr_factor` (by which
training multiplies the learning rate), `hidden` (whether they are matrices between embedding and head) and `block` (the
number of their decoder layer, or None).
"""

from lamina.optim._badam import BlockAdamW
from lamina.optim._layerwise import Layerwise
from lamina.optim.build import Schedule, build_optimizer, build_schedule

__all__ = ["BlockAdamW", "Layerwise", "Schedule", "build_optimizer", "build_schedule"]
