"""The version, in the one place that packaging and the manifest both read."""

import re

__version__ = "0.1.0"


def is_newer(version: str) -> bool:
    """Whether that version of lamina comes after this one.

    >>> is_newer("99.0"), is_newer(__version__), is_newer("0.0.9"), is_newer("")
    (True, False, False, False)
    """
    return _numbers(version) > _numbers(__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
