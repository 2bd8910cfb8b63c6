"""`python -m lamina.fleet.tied PARENT ARGUMENT...`: becomes `python ARGUMENT...`, a process that ends with its parent.

Without it, a task would go on after the loss of the process that watches it, and hold its run's lock against the next
attempt. The parent's end is a SIGHUP, which makes `lamina train` save a checkpoint, and is never the second signal that
stops it at once. SIGUSR1 and SIGUSR2, which Slurm sends to every process of a job, are for the parent alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replaces this process by the command, which inherits what is set here."""
    parent, *arguments = sys.argv[1:]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it, but here it has another meaning
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)
        if os.getppid() != int(parent):  # it has ended before it could be asked for
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main()
