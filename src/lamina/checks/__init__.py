"""The data doctor: what a user should know about a data file before training on it.

`examine.py` is the way in: one streaming pass over the rows, each shown to every check in `kinds/`; `fix.py` writes a
cleaned copy. Nothing here keeps a row's text: a million rows are examined in a few hundred bytes each.
"""
