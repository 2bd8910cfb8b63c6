"""What other libraries call lamina's settings: one table for each, read by the configuration's hints and by
`lamina import`.

Names and values alone, without any of these libraries: `outcome.py` has what may become of a setting.
"""
