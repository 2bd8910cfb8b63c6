"""The steps of `make gpu`, the most important first: names, what they show, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: Its name.
        about: What it shows.
        function: `module:function` in this package; imported by the worker alone.
        seconds: After so many it is stopped, and the next one begins.
        slow: Whether it takes long on a CPU, so that the default test suite leaves it out.
    """

    name: str
    about: str
    function: str
    seconds: float
    slow: bool = False


STEPS = (
    Step("environment", "what this machine is, and its rate at matrix products", "environment:facts", 40),
    Step("attention", "documents in one sequence against each alone in float32", "parts:attention", 45),
    Step(
        "kernels",
        "compiled kernels against plain ones, and how often they are compiled",
        "parts:kernels",
        90,
        slow=True,
    ),
    Step("cross_entropy", "loss and gradient in chunks against torch's over all logits", "parts:cross_entropy", 45),
    Step("dropout", "the same mask in forward and backward", "parts:dropout", 20),
    Step("fused", "fused layers against plain torch: loss and gradients", "layers:fused", 90),
    Step(
        "checkpointing", "layers recomputed in the backward against layers kept", "layers:checkpointing", 45, slow=True
    ),
    Step("packed", "NF4, FP4 and int8 against the CPU's numbers, and trained on", "layers:packed", 45, slow=True),
    Step("resume", "a run cut and resumed, also in another process, bit for bit", "runs:resume", 90, slow=True),
    Step(
        "processes",
        "one process against several, ddp against fsdp: one for each GPU",
        "processes:processes",
        120,
        slow=True,
    ),
    Step("verify", "`lamina verify` on tiny Llama, Qwen 3 and Gemma 3", "runs:verify", 120, slow=True),
    Step("merge", "a trained adapter merged, with its certificate", "runs:merge", 45, slow=True),
    Step("bench", "`lamina bench train` on a 1B shape beside its peers", "benchmark:bench", 200, slow=True),
    Step("memory", "memory and compiled graphs over 200 steps", "runs:memory", 60, slow=True),
    Step("optimizers", "paged optimizers against those that are not", "runs:optimizers", 30, slow=True),
)
