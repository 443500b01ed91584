"""The site: `make docs` builds it, with warnings as errors, into build/site.

Sphinx, as NumPyro and ArviZ have it, reads the whole repository, so that a link between two files
of it is a link on the site too. Nothing is fetched when a page opens: formulas are MathML.
"""

import re
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError

import numpyro_neb

sys.path.insert(0, str(Path(__file__).parents[1]))
from docs import commands, formulas

project = "numpyro_neb"
author = "the authors of numpyro_neb"
copyright = author  # noqa: A001 (Sphinx's name for it)
version = release = numpyro_neb.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["build", "dist", ".*", "demo-output", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # shown as committed: tests/test_notebooks.py executes them
nb_ipywidgets_js = {}
nb_merge_streams = True

# A name in `backticks` is a link where it is one of ours, and code where it is not.
default_role = "py:obj"
smartquotes_action = "D"  # dashes, and no quotes: they are code more often than not
highlight_language = "none"  # an indented block is a formula
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Reference", "References"), "Memory", "Rounding"]
# Other projects' names: without the network nobody can ask them.
nitpick_ignore_regex = [
    (r"py:obj", r"(?s).*"),
    (r"py:class", r"numpyro_neb\.(integrators\.adaptation|_internal\.\w+)\.\w+"),
    (r"py:class", r"numpyro_neb\.posteriors\.(components|spreads)\.\w+"),
    (
        r"py:class",
        r"numpyro_neb\.empirical_bayes\.(kernels\.\w+|location_scale\.\w+|covariates\.\w+|observations\.Abstract\w+)",
    ),
    (r"py:.*", r"(?s)(?!numpyro_neb).*"),
]

html_theme = "pydata_sphinx_theme"
html_title = "numpyro_neb"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_extra_path = ["site"]
html_show_sourcelink = False
html_use_index = False  # the reference has one, and the search finds the rest
# Pages without a section of their own have nothing to show there.
alone = ("index", "performance", "comparison", "gallery")
html_sidebars = {f"docs/{page}": [] for page in alone}
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "logo": {"text": f"numpyro_neb {release}"},
    "footer_start": ["copyright"],
    "footer_center": [],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": ["page-toc"],
}
# A link in the header to the Repository of pyproject.toml's [project.urls], once it has one.
urls = dict(url.split(", ", 1) for url in metadata("numpyro-neb").get_all("Project-URL") or ())
if "Repository" in urls:
    link = {"name": "Repository", "url": urls["Repository"], "icon": "fa-solid fa-code-branch"}
    html_theme_options["icon_links"] = [link]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    """Formulas as MathML, docstrings as plain text, links for names without their module."""
    app.connect("builder-inited", _commands_exist)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("autodoc-process-docstring", _plain_text, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", _formulas, priority=600)
    app.connect("autodoc-process-signature", _short_types)
    app.connect("missing-reference", _by_last_part)
    app.connect("html-page-context", _title)


def _commands_exist(app: Any) -> None:
    del app
    if wrong := commands.complaints():
        raise ExtensionError("\n".join(["commands that pages name:", *wrong]))


def _mathml(tex: str, *, as_block: bool = False) -> str:
    """With norms whose bars are of one height: under a power only one of them would stretch."""
    formula = tex2mathml(tex, as_block=as_block)
    return re.sub(r"<mo\b([^>]*)>‖<", r'<mo\1 stretchy="false">‖<', formula)


def _inline(writer: Any, node: nodes.math) -> None:
    formula = _mathml(node.astext())
    is_long = len(node.astext()) > 60
    writer.body.append(f'<span class="formula">{formula}</span>' if is_long else formula)
    raise nodes.SkipNode


def _display(writer: Any, node: nodes.math_block) -> None:
    formula = _mathml(node.astext(), as_block=True)
    writer.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


# **Bold** and *emphasis* stay; any other asterisk is a product, or a shape's star.
ASTERISK = r"(\*\*[^*]+\*\*|(?<=\s)\*\w[^*]*\w\*(?=[\s.,;:]))|\*"


def _escape(match: re.Match[str]) -> str:
    return match[1] or r"\*"


def _plain_text(app: Any, what: Any, name: Any, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings know backticks, doctests, and formulas set off by an indentation."""
    del app, what, name, obj, options
    out: list[str] = []
    in_doctest = in_formula = in_code = False
    for line in lines:
        in_doctest = bool(line.strip()) and (in_doctest or line.lstrip().startswith(">>>"))
        indented = line.startswith("    ") or not line
        in_formula = indented and (in_formula or _sets_off(out, line))
        in_code = in_code and bool(line)
        if in_formula and line and (tex := formulas.display(line)):
            out += ["", ".. math::", "", f"    {tex}", ""]
            continue
        if in_formula and line and not out[-1]:
            out[-1:] = ["", "::", ""]
        if not in_doctest and not in_formula:
            parts = line.split("`")
            parts[in_code::2] = [re.sub(ASTERISK, _escape, part) for part in parts[in_code::2]]
            line = "`".join(parts)
            in_code ^= len(parts) % 2 == 0
        out.append(line)
    lines[:] = out


def _formulas(app: Any, what: Any, name: Any, obj: Any, options: Any, lines: list[str]) -> None:
    """The formulas in the prose of a docstring, which Napoleon has turned into RST."""
    del app, what, name, obj, options
    lines[:] = formulas.prose(lines)


def _sets_off(out: list[str], line: str) -> bool:
    """Whether an indented line follows an empty one and prose at the margin."""
    return bool(line) and len(out) > 1 and not out[-1] and bool(out[-2]) and out[-2][0] != " "


def _short_types(
    app: Any, what: Any, name: Any, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str | None, str | None]:
    """What Sphinx spells out of JAX's types, as the code has it; and <function f> is no Python."""
    del app, what, name, obj, options
    array = r"~?[\w.]*\bArray"
    like = rf"{array} \| ~?[\w.]*ndarray \| ~?[\w.]*bool \| ~?[\w.]*number"
    like += r" \| bool \| int \| float \| complex( \| ~?[\w.]*TypedNdArray)?"
    spelled = {r"<function (\w+)[^>]*>": r"\1", like: "ArrayLike", r"jaxlib\._jax\.Array": "Array"}
    for long, short in spelled.items():
        signature = signature and re.sub(long, short, signature)
        returns = returns and re.sub(long, short, returns)
    return signature, returns


def _by_last_part(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """`BAOAB` in a docstring of another module is numpyro_neb.integrators.BAOAB."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    objects = env.get_domain("py").objects
    target = node["reftarget"].removesuffix("()")
    found = [name for name in objects if name.endswith(f".{target}")]
    if len(found) != 1:
        return None
    entry = objects[found[0]]
    where = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference("", "", contnode, refuri=f"{where}#{entry.node_id}", internal=True)


def _title(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """<title> names the section too: there are memories to read about and in the reference."""
    del app, template, doctree
    sections = [parent["title"] for parent in reversed(context.get("parents", []))]
    ending = "Neural Empirical Bayes for NumPyro" if page == root_doc else html_title
    context["docstitle"] = " \u2013 ".join([*sections, ending])
