"""`python -m rldistill`."""

from rldistill.cli import main

main()
