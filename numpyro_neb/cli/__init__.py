"""The command line: `python -m numpyro_neb`."""

from numpyro_neb.cli.parser import main

__all__ = ["main"]
