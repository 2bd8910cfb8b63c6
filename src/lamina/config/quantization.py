"""How the frozen base is stored: 4 or 8 bits a weight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamina.config.section import Section

# What the 4-bit kernels of bitsandbytes know.
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class QuantizationConfig(Section):
    """A quantized base. Without this section it is held in 16 or 32 bits."""

    bits: Literal[4, 8] = 4
    """4: blocks of weights share a scale (QLoRA). 8: each output row has a scale (LLM.int8's weights)."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Which sixteen numbers 4 bits stand for; NF4's are spread like normally distributed weights."""

    double_quant: bool = True
    """Whether the scales of 4-bit blocks are quantized too: 4.127 instead of 4.5 bits a weight."""

    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype to dequantize weights into for a product, and of what is not quantized; `auto` is that of `dtype`."""

    blocksize: Annotated[int, Field(gt=0)] = 64
    """Weights that share a scale in 4 bits."""

    modules_to_not_convert: list[str] | None = None
    """Modules to leave unquantized, by name or its last parts; the output head always is."""

    @model_validator(mode="after")
    def _check(self) -> QuantizationConfig:
        if self.blocksize not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise ValueError(f"blocksize {self.blocksize} has no kernel; use one of {allowed}")
        if self.bits == 8:
            fields = type(self).model_fields
            others = ("quant_type", "double_quant", "blocksize")
            given = [name for name in others if getattr(self, name) != fields[name].default]
            if given:
                raise ValueError(f"{', '.join(given)} belongs to 4 bits, but bits is 8; remove it or set bits: 4")
        return self
