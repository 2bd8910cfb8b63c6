"""Commands that write models: `lamina merge` and `lamina quantize`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lamina.cli.output import (
    Bars,
    DeviceOption,
    JsonFlag,
    MismatchFlag,
    ModelOption,
    Overrides,
    Source,
    err,
    notify,
    out,
    print_json,
)
from lamina.errors import ConfigError, Problem


def merge(
    source: Source,
    destination: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16, float32, or auto: the dtype that the adapter was trained in.")
    ] = "auto",
    model: ModelOption = None,
    device: DeviceOption = "auto",
    allow_base_mismatch: MismatchFlag = False,
    original_base: Annotated[
        bool,
        typer.Option(
            "--original-base", help="Merge into the weights from before quantization, if the base model is quantized."
        ),
    ] = False,
    allow_difference: Annotated[
        bool, typer.Option("--allow-difference", help="Keep the merged model even if its certificate does not pass.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Merge an adapter into its base model, write a transformers folder, and certify that it is the same model."""
    if dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise ConfigError(Problem("--dtype", f"{dtype!r} is not one of auto, bfloat16, float16, float32"))
    from lamina.export.merge import merge as merge_adapter

    merged = merge_adapter(
        source,
        destination,
        model=model,
        dtype=dtype,
        allow_base_mismatch=allow_base_mismatch,
        original_base=original_base,
        allow_difference=allow_difference,
        notify=notify,
    )
    if as_json:
        print_json(merged.as_json())
        return
    out.print(f"merged model: {merged.path}", markup=False)
    out.print(merged.certificate.line(), markup=False)


def quantize(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file with the model and the data.")],
    destination: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    overrides: Overrides = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Number of tokens of training documents to calibrate on; by default 32768."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Quantize a base model to 4 bits, calibrated on your data (GPTQ)."""
    from lamina.config import load_config
    from lamina.config.places import check_files

    checked = load_config(config, overrides or [])
    if destination.exists():
        raise ConfigError(Problem("--out", f"{destination} already exists.", "choose another, or delete it"))
    check_files(checked.model_dump(mode="json"))
    from lamina.export.quantize import DEFAULT_TOKENS
    from lamina.export.quantize import quantize as quantize_base

    with Bars() as bars:
        result = quantize_base(
            checked, destination, tokens=tokens or DEFAULT_TOKENS, progress=bars.update, notify=notify
        )
    if as_json:
        print_json(result.as_json())
        return
    out.print(f"quantized base model: {result.path}", markup=False)
    out.print(result.line(), markup=False)
    given = [config, *(overrides or []), f"model={result.path}", "quantization=null"]
    err.print(f"  next    lamina train {escape(shlex.join(given))}", soft_wrap=True)
