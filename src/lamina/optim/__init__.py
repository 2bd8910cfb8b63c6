"""Optimizers, one file each, and learning-rate schedules.

`NAME.py` is the optimizer that `train.optim: NAME` names, and defines `build(config, groups)`; what it reads of the
configuration stands in `config/optimizers/NAME.py`. A group is a dictionary as torch's optimizers take them: `params`,
`weight_decay`, `lr_factor` (by which training multiplies the learning rate) and `hidden` (whether they are matrices
between embedding and head).
"""

from lamina.optim._galore import LayerwiseGaloreAdamW
from lamina.optim.build import Schedule, build_optimizer, build_schedule

__all__ = ["LayerwiseGaloreAdamW", "Schedule", "build_optimizer", "build_schedule"]
