"""`lamina convert`: an old pickled adapter, written again as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lamina.cli.output import JsonFlag, err, notify, out, print_json


def convert(
    source: Annotated[Path, typer.Argument(metavar="OLD", help="The folder of an adapter with adapter_model.bin.")],
    destination: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    as_json: JsonFlag = False,
) -> None:
    """Write an old pickled adapter (adapter_model.bin) again as safetensors, without running what is in it."""
    from lamina.adapters.convert import convert as convert_adapter

    converted = convert_adapter(source, destination, notify=notify)
    if as_json:
        print_json(converted.as_json())
        return
    out.print(f"adapter: {converted.path} ({converted.tensors} tensors, {converted.bytes:,} bytes)", markup=False)
    err.print(f"  next    lamina chat {escape(str(converted.path))}")
