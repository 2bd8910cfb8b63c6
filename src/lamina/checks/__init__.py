"""Checks data before training: `lamina data check` and `lamina data show`.

`examine.py` is the entry point: one streaming pass that shows each row to every check in `kinds/`. `fix.py` writes a
cleaned copy. Nothing here keeps the text of all rows: each row takes a few hundred bytes, even with a million of them.
"""
