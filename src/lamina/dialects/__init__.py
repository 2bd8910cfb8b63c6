"""What other libraries call lamina's settings, for hints and for `lamina import`.

One table for each library, with names and values alone: `outcome.py` has what may become of a setting.
"""
