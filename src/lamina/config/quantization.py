"""How the frozen base model is stored: 4 or 8 bits per weight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamina.config.section import Section

# Block sizes that the 4-bit kernels of bitsandbytes support.
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class QuantizationConfig(Section):
    """A quantized base model. Without this section, it is stored in 16 or 32 bits."""

    bits: Literal[4, 8] = 4
    """4: blocks of weights share a scale (QLoRA). 8: each output row has a scale (the weights of LLM.int8)."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The sixteen values of the 4-bit type; those of NF4 are spaced for normally distributed weights."""

    double_quant: bool = True
    """Whether to quantize the scales of the 4-bit blocks too: 4.127 instead of 4.5 bits per weight."""

    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype that weights are dequantized into for a matrix product, and dtype of unquantized weights; `auto` takes
    `dtype`."""

    blocksize: Annotated[int, Field(gt=0)] = 64
    """Number of weights that share a scale in 4 bits."""

    modules_to_not_convert: list[str] | None = None
    """Modules to leave unquantized, by name or the end of it. The output head is never quantized."""

    @model_validator(mode="after")
    def _check(self) -> QuantizationConfig:
        if self.blocksize not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise ValueError(f"blocksize {self.blocksize} is not supported; use one of {allowed}")
        if self.bits == 8:
            fields = type(self).model_fields
            others = ("quant_type", "double_quant", "blocksize")
            given = [name for name in others if getattr(self, name) != fields[name].default]
            if given:
                raise ValueError(f"{', '.join(given)} applies to 4 bits only, but bits is 8; remove it or set bits: 4")
        return self
