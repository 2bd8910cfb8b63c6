"""`python -m lamina`."""

import os
import signal
import sys

signal.signal(signal.SIGTERM, signal.default_int_handler)  # `main` does so, once it is imported
try:
    from lamina.cli.app import main
except KeyboardInterrupt:
    if "--json" in sys.argv and os.environ.get("RANK", "0") == "0":
        sys.stdout.write('{"error": {"type": "Interrupted", "message": "interrupted"}}\n')
    raise SystemExit("interrupted" if os.environ.get("RANK", "0") == "0" else 1) from None
main()
