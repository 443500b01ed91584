"""Denoising digits that nobody has seen clean: `python -m benchmarks.sure`.

Of 1,500 of scikit-learn's digits at sigma = 0.3, 1,200 noisy ones train by `sure_loss` and 300
decide when to stop. Two kinds of energies are compared with the best linear rule, Wiener's filter
from the mean and covariance of all 1,500 noisy digits, by their errors on the 297 other digits.
"""

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import numpyro_neb as neb

SIGMA = 0.3


class LinearMixture(eqx.Module):
    """-log sum_k exp(a_k - (norm(u_k)^2 - norm(L_k u_k)^2) / (2 sigma^2)), u_k = y - m_k.

    Its jump averages linear rules, m_k + L_k' L_k (y - m_k), by responsibilities: the energy of a
    mixture of Gaussians if no eigenvalue of L_k' L_k exceeds one.
    """

    means: jax.Array
    roots: jax.Array
    logits: jax.Array

    def __call__(self, y: jax.Array) -> jax.Array:
        """The energy."""
        u = y - self.means
        kept = jnp.einsum("krd,kd->kr", self.roots, u)
        squares = jnp.sum(u**2, 1) - jnp.sum(kept**2, 1)
        return -jax.nn.logsumexp(self.logits - squares / (2 * SIGMA**2))


def noisy_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1,500 noisy digits, and 297 clean ones with 20 noisy copies of each."""
    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32).reshape(-1, 64)
    train, held_out = map(np.asarray, train_test_split(images, test_size=297, random_state=0))
    rng = np.random.default_rng(0)
    x = np.tile(held_out, (20, 1))
    noisy = [a + SIGMA * rng.normal(size=a.shape).astype(np.float32) for a in (train, x)]
    return noisy[0], x, noisy[1]


def shrinkage(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The linear rule's eigenvalues, max(l - sigma^2, 0) / l of the covariance's l, and axes."""
    values, axes = np.linalg.eigh(np.cov(y.T))
    return np.maximum(values - SIGMA**2, 0) / values, axes


def linear_rule(y: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The best linear estimate of X from what is seen, fitted to noisy y."""
    share, axes = shrinkage(y)
    return y.mean(0) + (seen - y.mean(0)) @ (axes * share) @ axes.T


def mixture(y: np.ndarray, count: int) -> neb.AbstractEnergy:
    """A starting energy: k-means on the noisy digits, one linear rule for all clusters."""
    settings: Any = {"n_init": 4, "random_state": 0}
    clusters = KMeans(count, **settings).fit(y)
    within = y - clusters.cluster_centers_[clusters.labels_]
    share, axes = shrinkage(within)
    roots = np.tile((np.sqrt(share) * axes).T, (count, 1, 1))
    parts = (clusters.cluster_centers_, roots, np.zeros(count))
    network = LinearMixture(*(jnp.asarray(a, jnp.float32) for a in parts))
    return neb.NetworkEnergy(network, SIGMA, (64,), loc=0.0, scale=1.0)


def perceptron(y: np.ndarray, width: int = 256) -> neb.AbstractEnergy:
    """A starting energy: the default form with a multilayer perceptron."""
    network = neb.networks.MLP((64,), width_size=width, depth=2, key=jax.random.key(0))
    scale = np.sqrt(max(float(np.mean(np.var(y, 0))) - SIGMA**2, 1e-3))
    return neb.ResidualEnergy(network, SIGMA, (64,), loc=y.mean(0), scale=scale)


def train_blind(
    energy: neb.AbstractEnergy, y: np.ndarray, *, num_steps: int, rate: float, decay: float
) -> neb.FitResult:
    """Trains on the first 1,200 noisy digits, stopped by Stein's estimate on the other 300."""
    return neb.fit(
        energy,
        y[:1200],
        key=jax.random.key(1),
        num_steps=num_steps,
        batch_size=128,
        optimizer=optax.adamw(rate, weight_decay=decay),
        objective=neb.sure_loss,
        validation_data=y[1200:],
        validate_every=25,
        patience=20,
        progress_bar=False,
    )


def error(energy: neb.AbstractEnergy, x: np.ndarray, seen: np.ndarray) -> float:
    """The squared error of the jump, summed over pixels and averaged over digits."""
    jumps = np.asarray(neb.posterior_mean(energy, seen, progress_bar=False))
    return float(np.mean(np.sum((jumps - x) ** 2, axis=1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    y, x, seen = noisy_digits()
    linear = float(np.mean(np.sum((linear_rule(y, seen) - x) ** 2, axis=1)))
    print(f"raw {np.mean(np.sum((seen - x) ** 2, 1)):.3f}, linear rule {linear:.3f}", flush=True)
    starts = {
        "mixture of 10 linear rules": (mixture(y[:1200], 10), 1e-3, 0.0),
        "mixture of 20 linear rules": (mixture(y[:1200], 20), 1e-3, 0.0),
        "multilayer perceptron": (perceptron(y[:1200]), 1e-3, 0.1),
    }
    for name, (energy, rate, decay) in starts.items():
        before = error(energy, x, seen)
        result = train_blind(energy, y, num_steps=arguments.steps, rate=rate, decay=decay)
        after = error(result.energy, x, seen)
        print(
            f"{name}: {before:.3f} before training, {after:.3f} after {len(result.losses)} steps,"
            f" {after / linear:.3f} of the linear rule's; the lowest SURE of the 300 held out was"
            f" {result.validation_losses.min():.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
