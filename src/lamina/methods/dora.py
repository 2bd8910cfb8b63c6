"""DoRA: y = c (x W^T + s drop(x) A^T B^T) + b with c = m / ||W + s B A||, row-wise norms, m trained.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353. m is initialized with the norms, so
that the layer starts as the base; no gradient flows through the norm (section 4.3). The layer is `DoraLinear` in
`lora.py`,
which `type: lora` with `use_dora: true` uses too. The norms are computed from rank-sized products
    (`compute/ops/dora.py`).

Dropout acts only on the input of the low-rank product, as in LoRA. (peft drops the base product's input too.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.methods.lora import Lora


class Dora(Lora):
    """Weight-decomposed low-rank adaptation."""

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return False  # peft saves it as LoRA with `use_dora`, which `type: lora` reads


METHOD = Dora()
