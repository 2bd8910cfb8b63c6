"""Checks a data file before anything is trained on it: `lamina data check` and `lamina data show`.

`examine.py` is the way in: one streaming pass over the rows, each shown to every check in `kinds/`; `fix.py` writes a
cleaned copy. Nothing here keeps a row's text: a million rows are examined in a few hundred bytes each.
"""
