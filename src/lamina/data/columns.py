"""`data.columns`: fills a format's fields from other columns, or from Jinja templates over a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lamina.chat.bounds import TemplateFailure
from lamina.chat.jinja import RowTemplate
from lamina.data.formats import column_names
from lamina.data.formats._fields import RowError
from lamina.data.read import Row
from lamina.errors import ConfigError, Problem


class ColumnMapping:
    """Maps fields to columns or templates; `mapping.apply(row)` returns the row under the fields' names.

    Attributes:
        fields: The mapped fields.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.fields = tuple(columns)
        self._columns = {field: source for field, source in columns.items() if not _is_template(source)}
        self._templates: dict[str, RowTemplate] = {}
        for field, source in columns.items():
            if _is_template(source):
                try:
                    self._templates[field] = RowTemplate(source)
                except TemplateFailure as error:
                    message = f"{source!r} is not a Jinja template: {error}"
                    raise ConfigError(Problem(f"data.columns.{field}", message, "correct it")) from None

    def apply(self, row: Row) -> Row:
        """Returns the row under the fields' names.

        Raises:
            RowError: The row lacks a column, or a template fails on it.
        """
        for field, column in self._columns.items():
            if column not in row:
                raise RowError(
                    f"it has no column {column!r}, which data.columns maps to {field!r}; "
                    f"its columns are {column_names(row)}"
                )
        values = {field: row[column] for field, column in self._columns.items()}
        for field, template in self._templates.items():
            try:
                values[field] = template.render_row(row)
            except TemplateFailure as error:
                raise RowError(f"the template of data.columns.{field} fails on it: {error}") from None
        return values

    def used(self, columns: Iterable[str]) -> set[str]:
        """Returns which of the columns are read."""
        named = {name for template in self._templates.values() for name in template.names}
        return {*self._columns.values(), *(column for column in columns if column in named)}


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text
