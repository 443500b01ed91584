"""The front door and the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import numpyro_neb as neb

PACKAGE = Path(neb.__file__).parent
# Which rooms, folders or files of the package, each room imports: all of them, and no others.
ARROWS = {
    "_internal": set(),
    "posteriors": {"_internal", "integrators"},
    "geometry": {"_internal"},
    "tables": {"_internal"},
    "energies": {"_internal", "integrators", "posteriors"},
    "integrators": {"_internal"},
    "networks": {"_internal", "energies"},
    "models": {"_internal", "energies", "integrators", "posteriors"},
    "empirical_bayes": {"_internal", "energies", "models", "posteriors", "training"},
    "training": {"_internal", "energies", "integrators", "models"},
    "files": {"_internal", "energies"},
    "memories": {"_internal", "empirical_bayes", "energies"},
    "sampling": {"_internal", "energies", "integrators", "models", "posteriors"},
    "evaluation": {"_internal", "empirical_bayes", "energies", "integrators"},
    "priors": {
        "_internal",
        "energies",
        "evaluation",
        "geometry",
        "models",
        "networks",
        "training",
    },
    "diagnostics": {"_internal", "sampling"},
    "streaming": {"_internal", "diagnostics", "files", "sampling", "training"},
    "plots": {
        "_internal",
        "diagnostics",
        "empirical_bayes",
        "energies",
        "evaluation",
        "geometry",
        "memories",
    },
    # A user of the package, beside which it knows a few rooms.
    "cli": {"the front door", "_internal", "empirical_bayes", "energies"},
    "__main__": {"cli"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """The rooms that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            top, *inside = (node.module or "").split(".")
            names = inside[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            (top, *inside), names = node.names[0].name.split("."), []
            names = inside[:1] or ["the front door"]
        else:
            continue
        if top == "numpyro_neb":
            yield from set(names) - {"__version__"}


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_imports_are_those_of_the_plan(room):
    own = [path for path in MODULES if path.relative_to(PACKAGE).with_suffix("").parts[0] == room]
    assert {name for path in own for name in imports(path)} - {room} == ARROWS[room]


def test_every_room_has_its_place_in_the_plan():
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}
    assert rooms - {"__init__"} == set(ARROWS)


def test_imports_flow_one_way():
    floors = {"the front door": 0}
    while len(floors) <= len(ARROWS):
        ready = [r for r in ARROWS if r not in floors and ARROWS[r] <= floors.keys()]
        assert ready, f"a circle among {set(ARROWS) - set(floors)}"
        floors |= dict.fromkeys(ready, max(floors.values()) + 1)


def test_a_front_door_holds_nothing_but_names():
    for path in PACKAGE.rglob("*/__init__.py"):
        docstring, *rest = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), path
        assert all(isinstance(node, ast.ImportFrom | ast.Assign) for node in rest), path
        assert [n.targets[0].id for n in rest if isinstance(n, ast.Assign)] in ([], ["__all__"])


def test_what_begins_with_an_underscore_is_private():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numpyro_neb"):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert set(private) <= {"__version__"}, f"{path} imports {private}"


def in_a_new_process(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_front_door_is_quick():
    """Heavy libraries load on first use, and no device starts."""
    late = [
        "arviz",
        "orbax",
        "matplotlib",
        "diffrax",
        "lineax",
        "optimistix",
        "flax",
        "sklearn",
        "xarray",
        "pandas",
        "zarr",
        "scipy.optimize",
        "scipy.stats",
        "scipy.interpolate",
    ]
    code = f"""
import sys, numpyro_neb
print([m for m in {late} if m in sys.modules])
from jax._src import xla_bridge
print(xla_bridge._backends)
"""
    assert in_a_new_process(code).splitlines() == ["[]", "{}"]


def test_every_public_name_is_there_and_documented():
    for name in neb.__all__:
        assert getattr(neb, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        neb.absent  # noqa: B018


def test_dir_lists_the_public_names_alone():
    assert dir(neb) == sorted(neb.__all__)
    assert len(set(neb.__all__)) == len(neb.__all__)


def test_sizes():
    for path in MODULES:
        text = path.read_text()
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                assert node.end_lineno - node.lineno - docstring.count("\n") <= 60, node.name
