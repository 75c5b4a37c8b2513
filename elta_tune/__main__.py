"""`python -m elta_tune`: the command."""

from elta_tune.cli import main

main()
