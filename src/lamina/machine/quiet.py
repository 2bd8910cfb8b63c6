"""Keeps other libraries' progress bars, load reports and hints out of lamina's output."""

from __future__ import annotations

import contextlib
import logging as python_logging
from collections.abc import Iterator

from transformers.utils import logging

# On import, no matter who imports it, bitsandbytes warns about kernels that lamina does not use.
python_logging.getLogger("bitsandbytes.backends").setLevel(python_logging.ERROR)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences everything but errors inside the block, progress bars included; restores the settings after it."""
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
