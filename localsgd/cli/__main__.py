"""``python -m localsgd.cli`` is the command ``localsgd``."""

from localsgd.cli import main

main()
