"""Optimizers, one file each, and learning-rate schedules.

`NAME.py` is the optimizer of `train.optim: NAME`, and defines `build(config, groups)`; `config/optimizers/NAME.py` has
its settings. A group is a parameter group of torch's optimizers, with `params`, `weight_decay`, `lr_factor` (by which
training multiplies the learning rate) and `hidden` (whether they are matrices between embedding and head).
"""

from lamina.optim._layerwise import Layerwise
from lamina.optim.build import Schedule, build_optimizer, build_schedule

__all__ = ["Layerwise", "Schedule", "build_optimizer", "build_schedule"]
