"""Finds tokens that the tokenizer can produce but that are beyond the base model's embedding."""

from __future__ import annotations

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings


class Check(BaseCheck):
    """Such tokens are an error: training stops on them."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._beyond = Tally(settings)
        self._rows = 0

    def see(self, seen: Seen) -> None:
        limit, tokenizer, encoded = self.settings.embedding_rows, self.settings.tokenizer, seen.row.encoded
        if limit is None or tokenizer is None or encoded is None or seen.left_out(self.settings):
            return
        self._rows += 1
        cut = self.settings.max_length if self.settings.fate(seen.example) == "cut" else None
        for side in (encoded, seen.row.rejected):
            ids = side.input_ids[:cut] if side is not None else encoded.input_ids[:0]
            if len(ids) and ids.max() >= limit:
                token = int(ids[ids >= limit][0])
                self._beyond.add(seen, f"token {token}, {tokenizer.convert_ids_to_tokens(token)!r}")
                return

    def finish(self) -> list[Finding]:
        return self._beyond.finding(
            "beyond_embedding",
            Severity.ERROR,
            f"a token of the row is beyond the base model's embedding, which has {self.settings.embedding_rows} rows",
            "Remove the token, choose a data.chat_template that does not write it, or resize the base model's "
            "embedding.",
            self._rows,
        )
