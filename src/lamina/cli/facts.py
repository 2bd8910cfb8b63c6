"""Commands that print facts: `lamina methods`, `lamina schema` and `lamina version`."""

from __future__ import annotations

import json

from rich.markup import escape
from rich.table import Table

from lamina.cli.output import JsonFlag, out, print_json, print_text
from lamina.version import __version__


def methods(as_json: JsonFlag = False) -> None:
    """List the methods and their settings."""
    from lamina.config import METHOD_CONFIGS

    if as_json:
        print_json(
            {
                "methods": [
                    {
                        "name": name,
                        "title": c.title,
                        "summary": c.summary,
                        "paper": c.paper,
                        "fields": c.model_json_schema()["properties"],
                    }
                    for name, c in METHOD_CONFIGS.items()
                ]
            }
        )
        return
    for name, config in METHOD_CONFIGS.items():
        out.print(f"[bold]{name}[/bold]  {config.title}: {config.summary}")
        out.print(f"  {config.paper}", markup=False)
        table = Table("field", "default", "meaning", box=None, padding=(0, 2))
        for field, info in config.model_fields.items():
            table.add_row(field, escape(repr(info.default)), escape(info.description or ""))
        out.print(table)


def schema(as_json: JsonFlag = False) -> None:
    """Print the JSON Schema of the configuration."""
    from lamina.config import Config

    if as_json:
        print_json(Config.model_json_schema())
    else:
        print_text(json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False))


def version(as_json: JsonFlag = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        out.print(__version__)
