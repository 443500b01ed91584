"""The gallery shows every plot function, and the tutorials show pictures of their own."""

import ast
import doctest
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from pages import programs
from PIL import Image

import numpyro_neb as neb
from docs import pictures

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS = (DOCS / "gallery.md").read_text().split("\n## ")[1:]


def section(name):
    link = f"{{py:func}}`numpyro_neb.plots.{name}`"
    (found,) = [text for text in SECTIONS if link in text]
    return found


@pytest.mark.parametrize("name", neb.plots.__all__)
def test_every_plot_function_has_its_picture_and_its_example(name):
    text = section(name)
    assert re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE) == [f"pictures/{name}.png"]
    assert (DOCS / "pictures" / f"{name}.png").exists()
    docstring = inspect.getdoc(getattr(neb.plots, name))
    example = "".join(part.source for part in doctest.DocTestParser().get_examples(docstring))
    assert [ast.dump(ast.parse(code)) for code in programs(text)] == [ast.dump(ast.parse(example))]


def test_the_pictures_are_those_that_can_be_drawn():
    drawn = {draw.__name__ for draw in pictures.PICTURES} | set(pictures.THUMBNAILS)
    assert set(neb.plots.__all__) <= drawn
    found = {path.stem for path in (DOCS / "pictures").glob("*.png")}
    assert found - {"mnist_chains"} == drawn  # of MNIST, which is not here


@pytest.mark.parametrize("notebook", pictures.THUMBNAILS)
def test_thumbnails_are_pictures_of_the_notebooks_as_they_are(notebook):
    assert f"(pictures/{notebook}.png)](../notebooks/{notebook}.ipynb)" in (
        (DOCS / "tutorials.md").read_text()
    )
    saved = Image.open(DOCS / "pictures" / f"{notebook}.png").convert("RGB")
    drawn = pictures.thumbnail(notebook)
    assert saved.size == drawn.size
    # In 64 colours a pixel is off by a few of 256 levels; another picture by many.
    difference = np.asarray(saved, float) - np.asarray(drawn, float)
    assert np.sqrt(np.mean(difference**2)) < 8
