"""Each public name has wrong arguments in the table of its room, or a reason why not."""

import importlib
import inspect
import pkgutil

import numpyro_neb as neb

# The files of the tables: of the rooms that are folders, and of those that are files.
FOLDERS = (
    "empirical_bayes",
    "energies",
    "evaluation",
    "files",
    "integrators",
    "models",
    "networks",
    "plots",
    "posteriors",
    "sampling",
    "streaming",
    "training",
)
FILES = ("diagnostics", "geometry", "memories", "priors", "tables")
TABLES = [
    *(f"tests.{room}.test_wrong_arguments" for room in FOLDERS),
    *(f"tests.test_wrong_arguments_{room}" for room in FILES),
]
REASONS = {
    "a result, which the package makes": {
        "empirical_bayes.MixtureFit",
        "empirical_bayes.LinearisedPosterior",
        "empirical_bayes.MixturePosterior",
        "empirical_bayes.PosteriorComponents",
        "empirical_bayes.PosteriorDistribution",
        "empirical_bayes.Ranking",
        "evaluation.Baseline",
        "evaluation.Evaluation",
        "evaluation.FamilyEvaluation",
        "evaluation.PairedTest",
        "geometry.OverlapRegimes",
        "geometry.SphereOverlaps",
        "geometry.SphereShell",
        "memories.FoundMemories",
        "memories.Memories",
        "models.LogNormalizer",
        "priors.PriorFromDraws",
        "networks.LinenNetwork",
        "networks.NNXNetwork",
        "posteriors.LinearisedPosterior",
        "posteriors.MixturePosterior",
        "sampling.LevelsState",
        "sampling.WalkJumpState",
        "tables.Moments",
        "training.FitResult",
        "training.PersistentChains",
    },
    "inside a compiled loop, for who writes an integrator": {
        "integrators.Target",
        "integrators.WalkState",
        "integrators.accept_prob",
        "integrators.metropolis",
        "integrators.stuck_if_not_finite",
    },
    "for who writes an objective": {"training.AbstractObjective"},
    "inside the package, behind the checks of what has rows": {
        "energies.initial_position",
        "evaluation.paired_test",
    },
    "takes any pytree": {"energies.NonTrainable", "energies.trainable"},
    "takes nothing": {
        "empirical_bayes.Diagonal",
        "empirical_bayes.Full",
        "posteriors.Diagonal",
        "posteriors.Full",
    },
}


def public_names():
    """Each room's functions and classes, by the room's name and their own."""
    for _, room, _ in pkgutil.iter_modules(neb.__path__):
        if room in ("__main__", "_internal", "cli"):
            continue
        module = importlib.import_module(f"numpyro_neb.{room}")
        own = [name for name, value in vars(module).items() if _is_own(module, name, value)]
        for name in getattr(module, "__all__", own):
            yield f"{room}.{name}", getattr(module, name)


def _is_own(module, name, value):
    made_here = getattr(value, "__module__", None) == module.__name__
    kind = inspect.isfunction(value) or inspect.isclass(value)
    return made_here and kind and not name.startswith("_")


def test_every_public_name_has_a_row():
    tabled = [rows.of for table in TABLES for rows in importlib.import_module(table).ROWS]
    missing = {name for name, value in public_names() if not any(value is of for of in tabled)}
    assert missing == set().union(*REASONS.values())


def test_the_front_door_is_of_the_rooms():
    of_rooms = [value for _, value in public_names()]
    for name in neb.__all__:
        value = getattr(neb, name)
        assert inspect.ismodule(value) or any(value is other for other in of_rooms), name
