"""`evaluate` of a family: each of its levels, and whether it is normalised there."""

import jax
import numpy as np
import pytest
from targets import MixtureFamily

import numpyro_neb as neb

KEY = jax.random.key(0)
QUICK = {"progress_bar": False, "num_temperatures": 20, "num_particles": 50, "num_steps": 20}
FAMILY = MixtureFamily(neb.MixtureEnergy(np.array([[-1.0], [1.0]]), 1.0), (0.5, 2.0))


def test_each_level_has_its_evaluation():
    x = np.sign(np.random.default_rng(0).normal(size=(40, 1))).astype(np.float32)
    found = neb.evaluate(FAMILY, x, key=KEY, sigmas=(1.0, 0.6), **QUICK)
    assert [round(e.sigma, 6) for e in found.levels] == [0.6, 1.0]
    one = neb.evaluate(FAMILY.at(1.0), x, key=jax.random.split(KEY)[1], **QUICK)
    assert found.levels[1].p_value == one.p_value
    assert found.levels[1].log_likelihood == one.log_likelihood
    # A mixture is normalised.
    assert all(abs(e.log_normalizer) < 5 * e.log_likelihood_error for e in found.levels)
    lines = str(found).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[0] == "0.6"


def test_by_default_four_levels_of_its_range(untyped):
    seen = []

    def evaluate(energy, held_out, **settings):
        seen.append(float(energy.sigma))

    neb.evaluation.families.at_levels(FAMILY, None, KEY, evaluate, None, (None,) * 9)
    np.testing.assert_allclose(seen, 0.5 * 4 ** (np.arange(4) / 4 + 1 / 8), rtol=1e-5)


def test_sigmas_are_for_families(untyped):
    x = np.zeros((40, 1), np.float32)
    with pytest.raises(ValueError, match="sigmas must be None for an energy of one noise level"):
        neb.evaluate(FAMILY.at(1.0), x, key=KEY, sigmas=(1.0,))
