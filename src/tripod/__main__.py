"""`python -m tripod` is the command `tripod`."""

from tripod.cli.app import main

main()
