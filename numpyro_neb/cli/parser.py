"""The command-line parser, and the function that runs its commands."""

import argparse
import sys
from pathlib import Path

from numpyro_neb.cli.commands import add_commands, run


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m numpyro_neb",
        description="Neural Empirical Bayes: learn a smoothed density, walk on it, jump.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser(
        "demo",
        help="train on scikit-learn's handwritten digits, walk, jump, and look at it in ArviZ",
        description="The whole workflow on 1,797 handwritten digits; two to three minutes.",
    )
    demo_parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder for what it writes"
    )
    add_commands(commands)
    arguments = parser.parse_args(argv)
    if arguments.command != "demo":
        return run(arguments)
    try:
        # ArviZ and matplotlib take seconds to load: too slow for every --help.
        from numpyro_neb.cli.demo import demo

        demo(arguments.out)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("sklearn"):
            raise
        install = "pip install 'numpyro-neb[demo]'"
        print(f"The demo's digits come with scikit-learn: {install}", file=sys.stderr)
        return 1
    return 0
