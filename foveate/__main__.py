"""``python -m foveate``: the command line."""

from .cli import main

main()
