"""The command-line parser, and the function that runs its commands."""

import argparse
import sys
from pathlib import Path

from numpyro_neb import __version__
from numpyro_neb.cli.commands import add_commands, run


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    script = Path(sys.argv[0]).stem == "numpyro-neb"
    parser = argparse.ArgumentParser(
        prog="numpyro-neb" if script else "python -m numpyro_neb",
        description="Neural Empirical Bayes: learn a smoothed density, walk on it, jump.",
    )
    parser.add_argument("--version", action="version", version=f"numpyro-neb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train on scikit-learn's handwritten digits, walk, jump, and look at it in ArviZ",
        description="The whole workflow on 1,797 handwritten digits; two to three minutes.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder for what it writes"
    )
    demo.set_defaults(run=_demo)
    add_commands(commands)
    return run(parser.parse_args(argv))


def _demo(arguments):
    try:
        # ArviZ and matplotlib take seconds to load: too slow for every --help.
        from numpyro_neb.cli.demo import demo

        demo(arguments.out)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("sklearn"):
            raise
        install = "pip install 'numpyro-neb[demo]'"
        raise ModuleNotFoundError(f"the digits come with scikit-learn: {install}") from None
