"""General text and unrelated prompts, written for lamina, on which forgetting is measured."""

from lamina.evaluation.general.measure import General, general_digest, measure_general, read_general

__all__ = ["General", "general_digest", "measure_general", "read_general"]
