"""`python -m lamina`."""

from lamina.cli.app import main

main()
