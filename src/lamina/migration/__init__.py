"""`lamina import`: translates configurations of Axolotl, LLaMA-Factory and TRL, and command lines of the latter two."""

from lamina.migration.draft import Row, Translation
from lamina.migration.translate import is_foreign, translate

__all__ = ["Row", "Translation", "is_foreign", "translate"]
