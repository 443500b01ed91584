"""What sigma does to the walk and to the jump, on 8 x 8 digits: `python -m benchmarks.sigma`.

An energy of a perceptron is trained at each sigma. Printed for each, on 297 held-out digits and on
a walk of 4 chains, 1,000 draws of 20 steps:

    pairs      of i-spheres apart / overlapping / contained
    linear     the squared error of the best linear denoiser, as a share of that of the noise
    jump       the same for the energy's jump
    width      sd of the walk's jumps as a share of the data's, root mean square over the pixels
    ESS        effective draws of y per 1,000 gradients, the smallest over the pixels
    nearest    the median distance of a jump from its nearest training digit, as a share of that
               of a held-out digit: below 1 the jumps keep to the training digits, far above 1 they
               are blurred
"""

import argparse

import jax
import numpy as np
import optax
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import numpyro_neb as neb
from benchmarks.images import weighed

CHAINS, DRAWS, STEPS = 4, 1000, 20


def trained(
    train: np.ndarray, sigma: float, num_steps: int, num_updates: int
) -> neb.ResidualEnergy:
    """The demo's energy, at sigma."""
    network = neb.networks.MLP((64,), width_size=256, depth=3, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, sigma, (64,), loc=train.mean(0), scale=train.std())
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, num_steps), weight_decay=1.0)
    settings = {"num_steps": num_steps, "batch_size": 128, "optimizer": optimizer}
    energy = neb.fit(energy, train, key=jax.random.key(0), progress_bar=False, **settings).energy
    return weighed(energy, train, num_updates)


def walk(energy: neb.ResidualEnergy) -> tuple[np.ndarray, np.ndarray]:
    """The walk and its jumps, each of shape (chains, draws, 64)."""
    mcmc = MCMC(
        neb.WalkJumpKernel(energy, num_steps=STEPS),
        num_warmup=100,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1))
    draws = mcmc.get_samples(group_by_chain=True)
    return np.asarray(draws["y"], float), np.asarray(draws["x"], float)


def shares(energy, train, held_out) -> tuple[float, float]:
    """The best linear denoiser's and the jump's squared errors, as shares of the noise's."""
    sigma = float(energy.sigma)
    variances = np.linalg.eigvalsh(np.cov(train.T))
    linear = np.mean(variances / (variances + sigma**2))
    noise = np.random.default_rng(0).normal(size=(20, *held_out.shape)).astype(np.float32)
    jump = np.asarray(neb.posterior_mean(energy, held_out + sigma * noise, progress_bar=False))
    return float(linear), float(np.mean((jump - held_out) ** 2)) / sigma**2


def row(
    train: np.ndarray, held_out: np.ndarray, sigma: float, num_steps: int, num_updates: int
) -> str:
    energy = trained(train, sigma, num_steps, num_updates)
    linear, jump = shares(energy, train, held_out)
    y, x = walk(energy)
    width = np.sqrt(x.var((0, 1)).sum() / train.var(0).sum())
    ess = np.min(effective_sample_size(y)) / (CHAINS * DRAWS * STEPS) * 1000
    nearest = np.median(cdist(x[:, ::20].reshape(-1, 64), train).min(1))
    among = np.median(cdist(held_out, train).min(1))
    regimes = neb.overlap_regimes(train, sigma, progress_bar=False)
    pairs = " / ".join(f"{share:.0%}" for share in regimes)
    return (
        f"| {sigma:g} | {pairs} | {linear:.2f} | {jump:.2f} | {width:.2f} | {ess:.2g}"
        f" | {nearest / among:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.6])
    parser.add_argument("--steps", type=int, default=6000, help="of denoising, for each energy")
    parser.add_argument(
        "--updates", type=int, default=1000, help="of maximum likelihood, or 0 (1000)"
    )
    options = parser.parse_args()
    images = (load_digits(return_X_y=True)[0] / 16).astype(np.float32)
    train, held_out = map(np.asarray, train_test_split(images, test_size=297, random_state=0))
    print("| sigma | pairs | linear | jump | width | ESS | nearest |")
    print("|---|---|---|---|---|---|---|")
    for sigma in options.sigmas:
        print(row(train, held_out, sigma, options.steps, options.updates), flush=True)


if __name__ == "__main__":
    main()
