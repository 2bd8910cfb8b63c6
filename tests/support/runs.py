"""A summary with something in every field."""

from __future__ import annotations

from lamina.runs.summary import Summary

SUMMARY = Summary(
    run="runs/a",
    adapter="runs/a/adapter",
    adapter_digest="sha256:0",
    adapter_step=6,
    steps=8,
    skipped_steps=1,
    tokens=1120,
    supervised_tokens=290,
    train_loss_first=5.5,
    train_loss_last=4.5,
    eval_loss_first=6.5,
    eval_loss=6.0,
    tokens_per_second=1000.5,
    step_seconds_median=0.25,
    peak_memory_bytes=2**30,
    trainable_parameters=512,
    total_parameters=3824,
    adapted_weights_share=0.75,
    packed_weights_share=0.5,
    learning_rate=1e-4,
    loss_type="dpo",
    reference="sha256:3",
    eval_metrics_first={"rewards/margins": 0.0},
    eval_metrics={"rewards/margins": 0.5},
    world_size=2,
    strategy="ddp",
    communication_seconds=0.5,
    peak_memory_by_rank=[2**30, 2**29],
    figures={"ranks_kept": 28},
)
