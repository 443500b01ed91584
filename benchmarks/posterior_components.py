"""Components of MNIST digits' posteriors: `python -m benchmarks.posterior_components`.

Five components in 784 dimensions by Lanczos' method on Jacobian-vector products, compared with
those of the full covariance's dense eigendecomposition. The energy is trained for a minute;
mnist.npz is read from the folder named by NEB_DATA, or else from ../shared/data.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np

import numpyro_neb as neb
from benchmarks.normal_means import data_folder
from numpyro_neb.empirical_bayes.components import posterior_components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--digits", type=int, default=4)
    arguments = parser.parse_args()
    if (folder := data_folder()) is None:
        print("no data sets: NEB_DATA does not name a folder, and ../shared/data does not exist")
        return
    with np.load(folder / "mnist.npz") as arrays:
        train, test = (arrays[k].astype(np.float32) / 255 for k in ("x_train", "x_test"))
    network = neb.networks.MLP((28, 28), width_size=512, depth=3, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, arguments.sigma, (28, 28), train.mean(), train.std())
    settings: Any = {"num_steps": arguments.steps, "batch_size": 128}
    energy = neb.fit(energy, train, key=jax.random.key(1), **settings).energy
    noise = np.random.default_rng(0).normal(size=(arguments.digits, 28, 28)).astype(np.float32)
    y = test[: arguments.digits] + arguments.sigma * noise

    times = {}
    for name, find in {
        "Lanczos": lambda: posterior_components(energy, y, 5, progress_bar=False),
        "dense": lambda: np.linalg.eigh(neb.posterior_covariance(energy, y, progress_bar=False)),
    }.items():
        jax.block_until_ready(find())
        start = time.perf_counter()
        times[name] = jax.block_until_ready(find()), time.perf_counter() - start
        print(f"{name}: {times[name][1]:.2f} s for {len(y)} digits", flush=True)
    found, (values, vectors) = times["Lanczos"][0], times["dense"][0]
    leading = np.swapaxes(vectors[..., ::-1][..., :5], -1, -2)
    cosines = np.abs(np.sum(np.asarray(found.components).reshape(leading.shape) * leading, -1))
    worst = np.max(np.abs(np.asarray(found.variances) / values[..., ::-1][..., :5] - 1))
    print(f"variances differ by {worst:.1e} at most; least cosine {cosines.min():.4f}")
    print(f"residuals {float(found.residuals.max()):.1e} at most")
    print("variances", np.round(np.asarray(found.variances[0]), 3), "lowest", values[0, 0].round(3))


if __name__ == "__main__":
    main()
