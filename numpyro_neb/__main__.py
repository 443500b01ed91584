"""The command line: `python -m numpyro_neb` with train, evaluate, sample and more, or demo."""

import sys

from numpyro_neb.cli import main

if __name__ == "__main__":
    sys.exit(main())
