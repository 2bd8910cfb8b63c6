"""`train:` section: how to train. The names are those of transformers' and TRL's training arguments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lamina import plugins
from lamina.config.optimizers import (
    OPTIMIZERS,
    SPECIAL_SETTINGS,
    ApolloConfig,
    BadamConfig,
    GaloreConfig,
    OptimizerName,
)
from lamina.config.section import Section

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]

StepShare = Annotated[float, Field(gt=0.0, lt=1.0)]

# transformers' schedules that are functions of the step, and the settings of each.
SCHEDULE_SETTINGS: dict[str, tuple[str, ...]] = {
    "cosine": (),
    "linear": (),
    "constant": (),
    "constant_with_warmup": (),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
ScheduleName = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]

DEFAULT_EPOCHS = 3.0

# The value that the LoRA+ authors recommend.
LORAPLUS_RATIO = 16.0


if TYPE_CHECKING:
    TrackerName = str
else:
    TrackerName = Literal[tuple(plugins.members("trackers"))]


def _as_list(value: object) -> object:
    """One tracker may be given as a text; `none` is what transformers calls an empty list."""
    return value if not isinstance(value, str) else [] if value == "none" else [value]


class TrainConfig(Section):
    """Length, optimizer, schedule, checkpoints and trackers of a run."""

    num_train_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the data; 3 unless `max_steps` is given."""

    max_steps: PositiveInt | None = None
    """Optimizer steps, instead of epochs."""

    per_device_train_batch_size: PositiveInt = 4
    """Micro-batch size: this many examples or, with packing, this many times `max_length` tokens."""

    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches per optimizer step, over all processes together. The loss is divided by the number of supervised
    tokens in the whole step."""

    global_batch_size: PositiveInt | None = None
    """Size of an optimizer step in the unit of `per_device_train_batch_size`, of which it must be a multiple; an
    alternative to `gradient_accumulation_steps`."""

    per_device_eval_batch_size: PositiveInt = 8
    """Examples per evaluation batch."""

    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """Peak learning rate; null means the method's default (see `lamina methods`), a tenth of it for lion, and 0.3
    times it for PiSSA and LoRA+."""

    lr_scheduler_type: ScheduleName = "cosine"
    """Shape of the learning rate after the warmup: one of transformers' schedules."""

    lr_scheduler_kwargs: dict[str, float | int | str] | None = None
    """Settings of `cosine_with_min_lr` (`min_lr_rate` or `min_lr`), `cosine_with_restarts` (`num_cycles`), `polynomial`
    (`power`, `lr_end`), `inverse_sqrt` (`timescale`) and `warmup_stable_decay` (`num_decay_steps`, ...)."""

    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of all steps over which the learning rate rises from zero."""

    warmup_steps: NonNegativeInt = 0
    """Number of steps of the warmup, as an alternative to `warmup_ratio`."""

    optim: OptimizerName = "adamw_torch"
    """Optimizer (docs/optimizers.md). `adamw_torch` is torch's own AdamW, fused where the device supports it."""

    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, applied only to matrices."""

    adam_beta1: Beta | None = None
    """Decay rate of the gradient's moving average; null means 0.9."""

    adam_beta2: Beta | None = None
    """AdamW: decay rate of the squared gradient's moving average, null means 0.999. Lion: decay rate of the momentum,
    null means 0.99."""

    adam_epsilon: Annotated[float, Field(gt=0.0)] | None = None
    """AdamW's epsilon, which prevents division by zero; null means 1e-8."""

    loraplus_lr_ratio: Annotated[
        Annotated[float, Field(gt=0.0)] | Literal[True] | None,
        BeforeValidator(lambda value: float(value) if type(value) is int else value),  # 1 is not true
    ] = None
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): ratio of the learning rate of the B matrices to that of all other
    parameters; true means 16."""

    galore: GaloreConfig | None = None
    """Settings of the galore optimizers; null means their defaults."""

    apollo: ApolloConfig | None = None
    """Settings of the apollo optimizers; null means their defaults."""

    badam: BadamConfig | None = None
    """Settings of badam; null means their defaults."""

    max_grad_norm: NonNegative = 1.0
    """Gradients are clipped to this norm; 0 disables clipping."""

    gradient_checkpointing: Literal["auto", "selective"] | bool = "auto"
    """Recompute activations in the backward to save memory. true: all layers (fused layers except attention).
    `selective`: only the inputs of the gated unit, which are half of the memory, for a fifth more time (layers that are
    not fused as a whole). `auto`: as little as needed for the activations to fit."""

    compile: Literal["auto"] | bool = "auto"
    """How to compile the work between matrix products. `auto`: C++ kernels on a CPU (built once, in seconds) and
    torch.compile on CUDA. true: torch.compile everywhere (it warms up for a minute). false: plain torch."""

    eval_steps: PositiveInt | StepShare | None = None
    """Steps between evaluations, or a share of all steps (below 1); null means at the end of every epoch. There is
    always an evaluation at the end of training."""

    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations without a better loss."""

    early_stopping_threshold: NonNegative = 0.0
    """Minimum decrease of the evaluation loss that counts as better."""

    best_eval: str | None = None
    """Name of the evaluation set in `data.eval` whose loss picks the best checkpoint and stops early; by default the
    first."""

    load_best_model_at_end: bool = True
    """Keep the adapter of the best evaluation instead of the last one (needs evaluation data)."""

    save_steps: PositiveInt | StepShare = 100
    """Steps between checkpoints, or a share of all steps (below 1); there is always a checkpoint at the end of
    training."""

    save_total_limit: PositiveInt = 2
    """Number of checkpoints to keep, not counting the best one."""

    logging_steps: PositiveInt = 1
    """Steps between two lines of metrics."""

    report_to: Annotated[list[TrackerName], BeforeValidator(_as_list)] = Field(default_factory=list)
    """Experiment trackers to log to, in addition to `metrics.jsonl`: a name or a list of names (docs/trackers.md)."""

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainConfig:
        wrong = []
        if self.max_steps is not None and self.num_train_epochs is not None:
            wrong.append("max_steps and num_train_epochs both set the length of training; keep one of them")
        if self.warmup_ratio and self.warmup_steps:
            wrong.append("warmup_ratio and warmup_steps both set the warmup; keep one of them")
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            wrong.append(
                "lr_scheduler_type 'constant' has no warmup, so warmup_ratio and warmup_steps would have no "
                "effect; use 'constant_with_warmup' or remove the warmup"
            )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            wrong.append("early_stopping_threshold has no effect without early_stopping_patience; set both")
        if self.global_batch_size is not None:
            if self.gradient_accumulation_steps > 1:
                wrong.append(
                    "global_batch_size and gradient_accumulation_steps both set the size of a step; keep one of them"
                )
            if self.global_batch_size % self.per_device_train_batch_size:
                wrong.append(
                    f"global_batch_size {self.global_batch_size} is no multiple of per_device_train_batch_size "
                    f"{self.per_device_train_batch_size}; change one of them"
                )
        wrong += self._wrong_for_the_schedule()
        wrong += self._wrong_for_the_optimizer()
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    def _wrong_for_the_schedule(self) -> list[str]:
        name, given, wrong = self.lr_scheduler_type, set(self.lr_scheduler_kwargs or {}), []
        if others := sorted(given.difference(SCHEDULE_SETTINGS[name])):
            takes = ", ".join(SCHEDULE_SETTINGS[name]) or "no settings"
            wrong.append(f"lr_scheduler_kwargs has {', '.join(others)}, but lr_scheduler_type '{name}' takes {takes}")
        if name == "cosine_with_min_lr" and len(given & {"min_lr", "min_lr_rate"}) != 1:
            wrong.append(
                "lr_scheduler_type 'cosine_with_min_lr' needs where to end; set lr_scheduler_kwargs to "
                "{min_lr_rate: 0.1} for a tenth of the learning rate, or to {min_lr: 1e-5}"
            )
        if name == "warmup_stable_decay" and "num_decay_steps" not in given:
            wrong.append(
                "lr_scheduler_type 'warmup_stable_decay' needs lr_scheduler_kwargs: {num_decay_steps: STEPS}, the "
                "length of its last part"
            )
        return wrong

    def _wrong_for_the_optimizer(self) -> list[str]:
        facts, wrong = OPTIMIZERS[self.optim], []
        for name in SPECIAL_SETTINGS:
            if getattr(self, name) is not None and name not in facts.reads:
                wrong.append(f"{name} has no effect with optim '{self.optim}'; remove it or choose another optim")
        if facts.layerwise and self.micro_batches_per_step > 1:
            wrong.append(
                f"optim '{self.optim}' updates each parameter as soon as its gradient is ready, so it cannot "
                "accumulate gradients over several micro-batches; set gradient_accumulation_steps to 1 and raise "
                f"per_device_train_batch_size, or use '{self.optim.removesuffix('_layerwise')}'"
            )
        if facts.layerwise and self.max_grad_norm:
            wrong.append(
                f"optim '{self.optim}' updates each parameter before the other gradients are ready, so the norm of "
                "the whole gradient is not known in time to clip it; set max_grad_norm to 0, or use "
                f"'{self.optim.removesuffix('_layerwise')}'"
            )
        return wrong

    @property
    def micro_batches_per_step(self) -> int:
        """Number of micro-batches in an optimizer step, over all processes together."""
        if self.global_batch_size is None:
            return self.gradient_accumulation_steps
        return self.global_batch_size // self.per_device_train_batch_size

    def betas(self, beta1: float = 0.9, beta2: float = 0.999) -> tuple[float, float]:
        """Returns the decay rates of the moments: those that are set, and the optimizer's own defaults otherwise."""
        return (
            beta1 if self.adam_beta1 is None else self.adam_beta1,
            beta2 if self.adam_beta2 is None else self.adam_beta2,
        )

    @property
    def epsilon(self) -> float:
        """AdamW's epsilon, which prevents division by zero."""
        return 1e-8 if self.adam_epsilon is None else self.adam_epsilon

    @property
    def loraplus_ratio(self) -> float:
        """Ratio of the B matrices' learning rate to that of the others; 1 without LoRA+."""
        if self.loraplus_lr_ratio is None:
            return 1.0
        return LORAPLUS_RATIO if self.loraplus_lr_ratio is True else self.loraplus_lr_ratio

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate of a complete configuration, in which it has been filled in."""
        assert self.learning_rate is not None
        return self.learning_rate

    def steps_between(self, setting: float, total: int) -> int:
        """Returns `eval_steps` or `save_steps` as a number of steps, of `total` steps."""
        return setting if isinstance(setting, int) else math.ceil(setting * total)

    @property
    def epochs(self) -> float | None:
        """Number of epochs, or None if `max_steps` decides."""
        if self.max_steps is not None:
            return None
        return DEFAULT_EPOCHS if self.num_train_epochs is None else self.num_train_epochs
