"""`first_word`: 1 if the answer and the expected answer start with the same word."""

TITLE = "first word"


def score(answer: str, expected: str) -> float:
    """Compares the first words."""
    return float(answer.split()[:1] == expected.split()[:1])
