"""Files of earlier format versions load, and mean what they meant."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_neb as neb

VERSIONS = sorted(Path(__file__).parent.parent.glob("data/energies-*"))
FILES = [path for folder in VERSIONS for path in sorted(folder.glob("*.safetensors"))]


def test_each_kind_of_energy_is_there():
    assert [folder.name for folder in VERSIONS] == ["energies-1"]
    kinds = {path.stem.partition("-")[0] for path in FILES}
    assert kinds == {"NetworkEnergy", "ResidualEnergy", "ConditionalEnergy", "MixtureEnergy"}
    for folder in VERSIONS:
        stems = {path.stem for path in folder.glob("*.safetensors")}
        assert stems == set(json.loads((folder / "values.json").read_text())["values"])
    assert max(path.stat().st_size for path in FILES) < 20_000


@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}/{p.stem}" for p in FILES])
def test_an_old_file_means_what_it_meant(path, tmp_path):
    value = json.loads((path.parent / "values.json").read_text())["values"][path.stem]
    energy = neb.load(path)
    looked_at = energy if value["sigma"] is None else energy.at(value["sigma"])
    y = jnp.asarray(value["y"], jnp.float32)
    phi, minus_score = eqx.filter_jit(jax.value_and_grad(lambda y, of: of(y)))(y, looked_at)
    # Sums of a few hundred terms in float32, in whatever order: 1e-5 is 84 of its eps.
    np.testing.assert_allclose(phi, value["phi"], rtol=1e-5)
    scale = np.max(np.abs(value["score"]))
    np.testing.assert_allclose(-minus_score, value["score"], rtol=0, atol=1e-5 * scale)
    neb.save(tmp_path / "again", energy)
    assert eqx.tree_equal(neb.load(tmp_path / "again"), energy)
