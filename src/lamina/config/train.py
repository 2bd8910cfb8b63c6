"""`train:` how to train. The names are those of transformers' and TRL's training arguments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamina.config.optimizers import OPTIMIZERS, SPECIAL_SETTINGS, GaloreConfig, OptimizerName
from lamina.config.section import Section

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]

DEFAULT_EPOCHS = 3.0

# The value that the authors of LoRA+ recommend.
LORAPLUS_RATIO = 16.0


class TrainConfig(Section):
    """Length, optimizer, schedule, checkpoints and trackers of a run."""

    num_train_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the data; 3 unless `max_steps` is given."""

    max_steps: PositiveInt | None = None
    """Optimizer steps, instead of epochs."""

    per_device_train_batch_size: PositiveInt = 4
    """Micro-batch: this many examples, or with packing this many times `max_length` tokens."""

    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches in an optimizer step; the loss is divided by the supervised tokens of the whole step."""

    per_device_eval_batch_size: PositiveInt = 8
    """Examples in one evaluation batch."""

    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """Peak learning rate; null means the method's own (see `lamina methods`), for lion a tenth of it."""

    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after the warm-up."""

    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of all steps over which the learning rate rises from zero."""

    warmup_steps: NonNegativeInt = 0
    """Number of steps over which it rises, instead of a share."""

    optim: OptimizerName = "adamw_torch"
    """Optimizer (docs/optimizers.md). `adamw_torch` is torch's own AdamW, fused where the device has it."""

    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices only."""

    adam_beta1: Beta | None = None
    """Decay of the gradient's mean; null means 0.9."""

    adam_beta2: Beta | None = None
    """AdamW's decay of the gradient's square, null means 0.999; Lion's decay of the mean, null means 0.99."""

    adam_epsilon: Annotated[float, Field(gt=0.0)] | None = None
    """AdamW's term against division by zero; null means 1e-8."""

    loraplus_lr_ratio: Annotated[float, Field(gt=0.0)] | Literal[True] | None = None
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): learning rate of the B matrices, as a multiple of that of the
    others; true means 16."""

    galore: GaloreConfig | None = None
    """Settings of the galore optimizers; null means their defaults."""

    max_grad_norm: NonNegative = 1.0
    """Gradients are scaled down to this norm; 0 switches clipping off."""

    gradient_checkpointing: Literal["auto", "selective"] | bool = "auto"
    """Recompute layers in the backward to save memory: true all of them (fused ones but for attention), `selective`
    only the inputs of the gated unit, which take half of the memory, for a fifth more time (layers that are not fused
    as a whole); `auto` as little as makes the activations fit."""

    compile: Literal["auto"] | bool = "auto"
    """How the work between matrix products is compiled: `auto` uses C++ kernels on a CPU (built once, in seconds) and
    torch.compile on CUDA; true torch.compile everywhere (it warms up for a minute), false plain torch."""

    eval_steps: PositiveInt | None = None
    """Steps between evaluations; null means at the end of every epoch. The end of training always evaluates."""

    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations without a better loss."""

    early_stopping_threshold: NonNegative = 0.0
    """How much lower the evaluation loss must be to count as better."""

    load_best_model_at_end: bool = True
    """Keep the adapter of the best evaluation rather than the last one (needs evaluation data)."""

    save_steps: PositiveInt = 100
    """Steps between checkpoints; the end of training always saves."""

    save_total_limit: PositiveInt = 2
    """How many checkpoints to keep, not counting the best one."""

    logging_steps: PositiveInt = 1
    """Steps between two lines of metrics."""

    report_to: list[Literal["tensorboard"]] = Field(default_factory=list)
    """Trackers to feed besides `metrics.jsonl`."""

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainConfig:
        wrong = []
        if self.max_steps is not None and self.num_train_epochs is not None:
            wrong.append("max_steps and num_train_epochs both set the length of training; keep one of them")
        if self.warmup_ratio and self.warmup_steps:
            wrong.append("warmup_ratio and warmup_steps both set the warm-up; keep one of them")
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            wrong.append(
                "lr_scheduler_type 'constant' has no warm-up, so warmup_ratio and warmup_steps would do nothing; "
                "use 'constant_with_warmup' or remove the warm-up"
            )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            wrong.append("early_stopping_threshold does nothing without early_stopping_patience; set both")
        wrong += self._wrong_for_the_optimizer()
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    def _wrong_for_the_optimizer(self) -> list[str]:
        facts, wrong = OPTIMIZERS[self.optim], []
        for name in SPECIAL_SETTINGS:
            if getattr(self, name) is not None and name not in facts.reads:
                wrong.append(f"{name} does nothing with optim '{self.optim}'; remove it or choose another optim")
        if facts.layerwise and self.gradient_accumulation_steps > 1:
            wrong.append(
                f"optim '{self.optim}' moves each tensor as soon as its gradient is there, so gradients of several "
                "micro-batches cannot be added up; set gradient_accumulation_steps to 1 and raise "
                f"per_device_train_batch_size, or use '{self.optim.removesuffix('_layerwise')}'"
            )
        if facts.layerwise and self.max_grad_norm:
            wrong.append(
                f"optim '{self.optim}' moves each tensor before the other gradients are there, so the norm of the "
                "whole gradient is not known in time to clip it; set max_grad_norm to 0, or use "
                f"'{self.optim.removesuffix('_layerwise')}'"
            )
        return wrong

    def betas(self, beta1: float = 0.9, beta2: float = 0.999) -> tuple[float, float]:
        """Decays of the moments: those that are set, else an optimizer's own."""
        return (
            beta1 if self.adam_beta1 is None else self.adam_beta1,
            beta2 if self.adam_beta2 is None else self.adam_beta2,
        )

    @property
    def epsilon(self) -> float:
        """AdamW's term against division by zero."""
        return 1e-8 if self.adam_epsilon is None else self.adam_epsilon

    @property
    def loraplus_ratio(self) -> float:
        """By how much the learning rate of the B matrices is larger; 1 without LoRA+."""
        if self.loraplus_lr_ratio is None:
            return 1.0
        return LORAPLUS_RATIO if self.loraplus_lr_ratio is True else self.loraplus_lr_ratio

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate of a whole configuration, where it has been filled in."""
        assert self.learning_rate is not None
        return self.learning_rate

    @property
    def epochs(self) -> float | None:
        """Epochs to train for, or None when `max_steps` decides."""
        if self.max_steps is not None:
            return None
        return DEFAULT_EPOCHS if self.num_train_epochs is None else self.num_train_epochs
