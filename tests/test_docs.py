"""The pages of the site say what is so. That it builds and opens is in test_site.py."""

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from pages import names_after_running, programs, rows_of_numbers

import numpyro_neb as neb
from docs import commands

DOCS = Path(__file__).parent.parent / "docs"


def text(name):
    return (DOCS / f"{name}.md").read_text()


def public_names():
    """The names of the front door, and the public names of the modules among them."""
    for name in neb.__all__:
        value = getattr(neb, name)
        if not inspect.ismodule(value):
            yield name
            continue
        for inner, thing in vars(value).items():
            own = getattr(thing, "__module__", None) == value.__name__
            own = inner in getattr(value, "__all__", [inner] if own else [])
            is_named = inspect.isclass(thing) or inspect.isfunction(thing)
            if own and is_named and not inner.startswith("_"):
                yield inner if getattr(neb, inner, None) is thing else f"{name}.{inner}"


def test_every_public_name_is_in_the_reference():
    reference = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    named = set(re.findall(r"^\.\. auto\w+:: numpyro_neb\.(\S+)$", reference, re.MULTILINE))
    assert set(public_names()) - named == set()


def test_every_command_that_a_page_names_exists():
    assert commands.complaints() == []


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("make docks", "the Makefile has no docks"),
        ("python -m benchmarks.wlak", "there is no module benchmarks.wlak"),
        ("python -m benchmarks.walk es", "invalid choice: 'es'"),
        ("python -m benchmarks.walk ess --num-stepz 10", "unrecognized arguments: --num-stepz 10"),
        ("numpyro-neb traim data.npy", "invalid choice: 'traim'"),
        ("numpyro-neb train --stepz 3", "unrecognized arguments: --stepz"),
        ("python -m benchmarks.timing", "benchmarks.timing does not read its arguments"),
    ],
)
def test_a_command_that_does_not_exist(command, wrong):
    page = f"Prose.\n\n```sh\n{command}   # a comment\n```\n"
    assert list(commands.commands(page)) == [command]
    assert wrong in commands.complaint(command)


def test_commands_in_prose_and_over_two_lines():
    block = "```sh\npython -m benchmarks.walk ess \\\n  --quick\n```"
    page = f"Run `make\n  test`, `make_it()`, `numpyro-neb[demo]`, `nice make -h`:\n\n{block}"
    assert list(commands.commands(page)) == ["python -m benchmarks.walk ess --quick", "make test"]
    timed = "Run `taskset -c 0 python -m benchmarks.walk kernel`."
    assert list(commands.commands(timed)) == ["python -m benchmarks.walk kernel"]


def test_where_the_page_says_that_modules_went_they_are():
    table = text("migration").split("| 0.1.0 | 0.3.0 |")[1]
    new = "".join(row[row.rfind(" | ") :] for row in table.splitlines())
    paths = re.findall("`([^`]+)`", new)
    assert len(paths) > 30
    for path in paths:
        module, _, name = f"numpyro_neb.{path}".rpartition(".")
        here = module if name[0].isupper() else f"{module}.{name}"
        assert hasattr(importlib.import_module(here), name) or here.endswith(name), path


def test_the_main_job_takes_ten_lines():
    lines = programs(text("index"))[0].strip().split("\n")
    assert len([line for line in lines if line]) <= 10


@pytest.mark.slow
@pytest.mark.statistical
def test_the_landing_page_runs_as_printed():
    # In full it is the README's first program, but for its fewer lines.
    short = text("index").replace("num_steps=1500", "num_steps=15")
    assert short != text("index")
    data = names_after_running(short)["data"]
    assert data.posterior["x"].shape == (1, 1000, 8, 8)
    assert np.all(np.isfinite(data.posterior["x"].values))


def test_the_table_of_widths(x32):
    page = text("narrower")
    rows = names_after_running(page)["rows"]
    np.testing.assert_allclose(rows_of_numbers(page), rows, atol=2e-3)
    sigma, closed, jumps, draws = np.transpose(rows)
    np.testing.assert_allclose(closed, 1 / np.sqrt(1 + sigma**2))
    # The standard deviation of 20,000 draws is off by 1 / sqrt(40,000) = 0.5% of itself.
    np.testing.assert_allclose(jumps, closed, rtol=5 * 0.005)
    np.testing.assert_allclose(draws, 1, rtol=5 * 0.005)


@pytest.mark.slow
@pytest.mark.statistical
def test_what_an_unnormalised_prior_can_do(capsys):
    page = text("unnormalised")
    names = names_after_running(page)
    assert abs(names["log_z"] + 3) < 5 * names["error"]
    assert names["gradient"] == -1
    printed = rows_of_numbers(capsys.readouterr().out)
    assert len(printed) == 5
    np.testing.assert_allclose(rows_of_numbers(page), printed, rtol=0.1, atol=1e-12)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:the walk is biased")  # the page shows one that is
def test_the_table_of_integrators():
    page = text("choose_integrator")
    found = names_after_running(page)["found"]
    rows = re.findall(
        r"^\| `(\w+\([^`]*)` \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", page, re.MULTILINE
    )
    table = {name: tuple(map(float, numbers)) for name, *numbers in rows}
    assert table.keys() == found.keys()
    for name, (closed, variance, ess) in table.items():
        # ESS draws of each of 100 coordinates; those of y^2 are fewer, by half at the least here.
        error = closed * np.sqrt(2 / (100 * found[name][1]))
        assert abs(found[name][0] - closed) < 5 * error
        assert abs(variance - closed) < 5 * error
        assert abs(found[name][1] / ess - 1) < 0.25


def test_the_overlaps_of_the_digits():
    page = text("choose_sigma")
    names = names_after_running(page)
    assert str(names["overlaps"]) in page


def rows_of_an_evaluation(printed):
    """The names of the rows, which are what stands before two blanks or more."""
    table = printed[printed.index("THE WALK") :].splitlines()
    return [re.split(r"\s{2,}", line.strip())[0] for line in table if line.strip()]


@pytest.mark.slow
@pytest.mark.statistical
def test_the_page_on_evaluation_runs_as_printed():
    page = text("evaluation")
    names = names_after_running(page)
    before, found = names["before"], names["found"]
    assert before.outcome == "wrong"
    assert found.outcome in ("right", "doubtful")  # a right energy is doubtful one time in 25
    assert found.auc < before.auc
    assert found.total_variation < before.total_variation
    assert found.log_likelihood > before.log_likelihood
    block = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    assert rows_of_an_evaluation(block) == rows_of_an_evaluation(str(found))
    # The same noise, and an energy that differs by rounding: what it was on another machine.
    said = re.search(r"log f\(y\) \(nats\) +(-[\d.]+)", block)
    assert abs(float(said.group(1)) - found.log_likelihood) < 5 * found.sampling_error


@pytest.mark.slow
@pytest.mark.statistical
def test_the_page_on_levels_runs_as_printed(capsys):
    page = text("levels")
    shares = names_after_running(page)["shares"]
    # 1,000 draws have errors of 0.015; 0.02 for the training.
    np.testing.assert_allclose(np.ravel(shares), (0.3, 0.25), atol=5 * 0.015 + 0.02)
    blocks = "".join(re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    printed = capsys.readouterr().out
    assert words(printed) == words(blocks)
    number = r"\d+\.\d+"
    found, said = (np.array(re.findall(number, text), float) for text in (printed, blocks))
    # Shares of 10,000 draws and rates are printed to one digit; another machine may round the other
    # way. Over keys the integrals have a standard deviation of 0.008 at sigma 0.1, less elsewhere.
    np.testing.assert_allclose(found[:-6], said[:-6], atol=0.101)
    np.testing.assert_allclose(found[-5::2], said[-5::2], atol=5 * 0.008 + 0.01)


def words(printed):
    return re.sub(r"\d+\.\d+", "", printed)
