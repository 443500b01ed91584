"""Pages of the documentation as programs."""

import re


def programs(page):
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def names_after_running(page):
    names = {}
    for program in programs(page):
        exec(program, names)
    return names


def rows_of_numbers(text):
    """The rows of the tables in text that begin with a number, as tuples of floats."""
    rows = re.findall(r"^\| ([-\d.e]+(?: \| [-\d.e]+)+) \|$", text, re.MULTILINE)
    return [tuple(map(float, row.split(" | "))) for row in rows]
