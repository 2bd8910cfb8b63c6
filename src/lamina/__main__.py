"""`python -m lamina`."""

import os

try:
    from lamina.cli.app import main
except KeyboardInterrupt:
    raise SystemExit("interrupted" if os.environ.get("RANK", "0") == "0" else 1) from None
main()
