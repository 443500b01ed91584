"""How noise expands a manifold, and how the jump undoes it: `python -m benchmarks.manifold`.

X is uniform on the unit circle in the first two of d coordinates. The noise takes Y off the circle
in d - 1 directions, to a distance that concentrates as d grows: a manifold of one dimension becomes
one of d - 1. The jump brings Y back to the circle's plane, at 1 - I1(k) / I0(k) from the circle in
the mean over k = rho / sigma^2, rho the length of Y in that plane, however large d is.

    distance   of Y from the circle, its mean and standard deviation
    shell      the same as predicted by `geometry.sphere_shell(d - 1, sigma)`
    dimension  the participation ratio of the covariance of Y, tr(C)^2 / tr(C^2)
    exact      the jump's mean distance from the circle, with the energy in closed form
    trained    the same with a trained energy
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ive

import numpyro_neb as neb


def circle(n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Points of the circle, of shape (n, dim)."""
    x = np.zeros((n, dim), np.float32)
    angles = rng.uniform(0, 2 * np.pi, n)
    x[:, 0], x[:, 1] = np.cos(angles), np.sin(angles)
    return x


def distance(points: np.ndarray) -> np.ndarray:
    """The distance of each point from the circle."""
    radius = np.hypot(points[:, 0], points[:, 1])
    return np.hypot(radius - 1, np.linalg.norm(points[:, 2:], axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 32, 128])
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    options = parser.parse_args()
    sigma, rng = options.sigma, np.random.default_rng(0)
    print("| d | distance | shell | dimension | exact | trained |")
    print("|---|---|---|---|---|---|")
    for dim in options.dims:
        x = circle(20_000, dim, rng)
        y = x + sigma * rng.normal(size=x.shape).astype(np.float32)
        off, shell = distance(y), neb.geometry.sphere_shell(dim - 1, sigma)
        covariance = np.cov(y.T)
        dimension = np.trace(covariance) ** 2 / np.sum(covariance**2)
        k = np.hypot(y[:, 0], y[:, 1]) / sigma**2
        exact = np.mean(1 - ive(1, k) / ive(0, k))
        network = neb.networks.MLP((dim,), width_size=128, depth=3, key=jax.random.key(0))
        energy = neb.ResidualEnergy(network, sigma, (dim,))
        settings = {"num_steps": options.steps, "batch_size": 256}
        energy = neb.fit(energy, x, key=jax.random.key(1), **settings).energy
        trained = distance(np.asarray(neb.posterior_mean(energy, jnp.asarray(y)))).mean()
        print(
            f"| {dim} | {off.mean():.3f} +- {off.std():.3f}"
            f" | {shell.radius:.3f} +- {shell.width:.3f} | {dimension:.1f}"
            f" | {exact:.3f} | {trained:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
