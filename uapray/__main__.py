"""``python -m uapray``."""

from uapray.cli import main

main()
