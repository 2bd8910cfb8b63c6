"""Published benchmarks by lm-eval, with lamina's engine as its language model: the same numbers, row by row.

`run_benchmarks` is in `run`, lm-eval's view of a generator in `language_model`. lm-eval is imported where it is used,
and not before.
"""
