"""The commands that the pages name: `make docs` fails where one has gone, or one of its options."""

import argparse
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parent.parent


def commands(page: str) -> Iterator[str]:
    """The commands of this project that stand in code, in the prose and in the blocks of a page."""
    page = re.sub(r" *\\\n\s*", " ", page)
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`]+)`", prose)
    for code in [line for block in blocks for line in block.splitlines()] + inline:
        code = re.sub(r"\s+", " ", code.split(" #")[0]).strip()
        named = re.match(r"(numpyro-neb|make)(?=\s|$)", code)
        if found := named or re.search(r"python -m (benchmarks|numpyro_neb)\b", code):
            yield code[found.start() :]


def complaint(command: str) -> str | None:
    """What is wrong with a command, or None. An ellipsis ends it: what follows is left open."""
    words = shlex.split(command.split("...")[0].replace("numpyro-neb", "python -m numpyro_neb"))
    if words[0] == "make":
        known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        missing = [word for word in words[1:] if "=" not in word and word not in known]
        return f"the Makefile has no {missing[0]}" if missing else None
    module, arguments = words[2], words[3:]
    if importlib.util.find_spec(module) is None:
        return f"there is no module {module}"
    return _refusal(module, arguments)


def _refusal(module: str, arguments: list[str]) -> str | None:
    """Runs a module as a program until it has read its arguments."""
    container: Any = argparse._ActionsContainer
    parse_args, add_action = argparse.ArgumentParser.parse_args, container._add_action

    def parse(*args, **settings):
        parse_args(*args, **settings)
        raise SystemExit  # it would now begin to work

    def add(parser, action):
        add_action(parser, action).required = False  # prose names a command without its files
        return action

    said = io.StringIO()
    with (
        patch.object(argparse.ArgumentParser, "parse_args", parse),
        patch.object(container, "_add_action", add),
        patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(action="ignore"),  # of runpy: that a module is imported already
    ):
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as stop:
            return said.getvalue().strip().splitlines()[-1] if stop.code else None
    return f"{module} does not read its arguments"


def complaints() -> list[str]:
    """What is wrong with the commands of all pages but the changelog, which tells of the past."""
    pages = {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md"}
    found = {c: page.name for page in pages for c in commands(page.read_text())}
    said = ((command, page, complaint(command)) for command, page in sorted(found.items()))
    return [f"{page}: {command}: {wrong}" for command, page, wrong in said if wrong]
