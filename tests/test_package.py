"""The front door and the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import numpyro_neb as neb

PACKAGE = Path(neb.__file__).parent
# Which rooms a room may import, beside `checks`. What is not named here imports only energies.
ARROWS = {
    "checks": set(),
    "activations": set(),
    "energies": {"activations"},
    "networks": {"flax_modules"},
    "flax_modules": {"activations", "energies"},
    "likelihood": {"energies", "integrators", "normalizer", "objectives"},
    "objectives": {"devices", "energies"},
    "interrupts": set(),
    "training": {
        "energies",
        "objectives",
        "checkpoints",
        "devices",
        "interrupts",
        "minibatches",
    },
    "files": set(),
    "checkpoints": {"devices", "files"},
    "minibatches": {"devices"},
    "devices": set(),
    "convolutions": set(),
    "integrators": {"energies", "convolutions"},
    "adaptation": {"integrators"},
    "distributions": {"batching", "energies", "mixtures", "integrators"},
    "densities": {"energies", "convolutions", "distributions"},
    "kernels": {"energies", "integrators", "adaptation", "densities"},
    "normalizer": {"energies", "integrators"},
    "posteriors": {"batching", "energies", "mixtures", "convolutions"},
    "normal_means": {"mixtures", "posteriors"},
    "memories": {"batching", "convolutions", "empirical_bayes", "energies"},
    "empirical_bayes": {
        "batching",
        "energies",
        "mixtures",
        "normalizer",
        "posteriors",
        "normal_means",
    },
    "two_sample": set(),
    "prototypes": set(),
    "baselines": {"batching", "energies", "mixtures"},
    "verdicts": {"baselines"},
    "evaluation": {
        "baselines",
        "empirical_bayes",
        "energies",
        "integrators",
        "minibatches",
        "posteriors",
        "prototypes",
        "two_sample",
        "verdicts",
    },
    "diagnostics": {"densities", "kernels", "normal_means"},
    "plots": {"diagnostics", "energies", "geometry", "memories", "verdicts"},
    "priors": {"batching", "energies", "distributions"},
    "configurations": {"activations", "energies", "mixtures", "networks"},
    "serialization": {"configurations", "energies", "files"},
    "states": {"serialization"},
    "streaming": {"devices", "diagnostics", "files", "kernels", "serialization", "states"},
    # A user of the package, as the demo is.
    "commands": {"", "energies", "files", "minibatches"},
}
ROOMS = [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_flow_one_way(room):
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numpyro_neb"):
            imported |= {node.module.partition(".")[2] or alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            imported |= {a.name.partition(".")[2] for a in node.names if "numpyro_neb" in a.name}
    free = {"__version__"} if room == "checks" else {"__version__", "checks"}
    assert imported - free <= ARROWS.get(room, {"energies"})


def in_a_new_process(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_front_door_is_quick():
    """Heavy libraries load on first use, and no device starts."""
    late = [
        "arviz",
        "matplotlib",
        "diffrax",
        "lineax",
        "optimistix",
        "flax",
        "sklearn",
        "xarray",
        "pandas",
        "zarr",
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


def test_sizes():
    for path in PACKAGE.glob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                assert node.end_lineno - node.lineno - docstring.count("\n") <= 60, node.name
