import importlib.metadata
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
# Four devices on a CPU: chain_method="parallel" and sharding are tested without a GPU. The tests
# mostly compile: JAX 0.10 takes half the time with the other two flags (0.12 refuses the first).
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4"
    + " --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)

# What one process has compiled the others load: the other worker, the programs that tests start,
# and the next run. `make clean` empties it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jaxtyping
import matplotlib.pyplot as plt
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_functions():
    """Linux lets a process map 65,530 areas of memory; each compiled function keeps several."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()


@pytest.fixture
def strict():
    """No silent dtype or rank promotion in our own arithmetic."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x32():
    """For what is about float32, where `make fast64` runs all tests in float64."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def digits():
    """The demo's split of scikit-learn's digits: 1,500 to train on, 297 held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images = (load_digits().images / 16).astype(np.float32)
    return train_test_split(images, test_size=297, random_state=0)


@pytest.fixture
def untyped():
    """Wrong arguments meet our own checks, as they do outside the tests, not the type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def digits_energy(digits):
    """A small energy of the digits at sigma = 0.3, trained for a few seconds."""
    import numpyro_neb as neb  # not at the top: pytest's plugin for types has to be first

    train, _ = digits
    network = neb.networks.MLP((8, 8), width_size=128, depth=3, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, 0.3, (8, 8), loc=train.mean(0), scale=train.std())
    settings = {"num_steps": 2000, "batch_size": 128, "progress_bar": False}
    return neb.fit(energy, train, key=jax.random.key(1), **settings).energy
