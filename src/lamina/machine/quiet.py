"""Keeps other libraries' progress bars, load reports and advice out of lamina's output."""

from __future__ import annotations

import contextlib
import logging as python_logging
from collections.abc import Iterator

from transformers.utils import logging

# When it is imported, by whomever, it warns of kernels that nothing here uses.
python_logging.getLogger("bitsandbytes.backends").setLevel(python_logging.ERROR)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors are logged, and no progress bar is drawn, inside the block; the settings are put back after it."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
