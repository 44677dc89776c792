"""`python -m rldistill`."""

from rldistill.entry import main

main()
