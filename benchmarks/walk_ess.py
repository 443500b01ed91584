"""How well a walk mixes, and to what law: `ess`, `langevin` and `bias` of `benchmarks.walk`.

On energies learned from scikit-learn's digits as the demo does, 4 chains each. `ess` compares
effective sample sizes of y, the smallest over the 64 pixels, per 1,000 gradients and per second of
sampling, without warm-up and tuning for all, with those of NUTS and MCLMC; `langevin` compares them
with MALA's and those of the paper's walk. `bias` compares the mean energy with that of a long
Metropolis-adjusted walk.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import numpyro_neb as neb
from benchmarks.timing import Row, Settings, bench_module, compilations

_CHAINS = 4
# One in 4 steps is recorded: 4 is a small part of the autocorrelation time of any peer here.
_THINNING = 4
_SIGMAS = (0.2, 0.3, 0.5)
# Other walks than the default one: half its friction, a longer step, another dynamics.
_OTHERS = (
    neb.integrators.BAOAB(friction=0.1),
    neb.integrators.BAOAB(step_size=1.25),
    neb.integrators.Microcanonical(),
)
# MALA's eta in units of sigma^2: the best one is taken.
_MALA_STEPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45)


@dataclasses.dataclass(frozen=True)
class Chains:
    """Draws of y, of shape (chains, draws, 64), and what they cost all chains together."""

    draws: np.ndarray
    gradients: float
    seconds: float
    note: str = ""

    @functools.cached_property
    def ess(self) -> float:
        """The smallest effective sample size of a coordinate."""
        return float(np.min(effective_sample_size(self.draws)))

    @property
    def per_gradient(self) -> float:
        """Effective draws per 1,000 gradients."""
        return 1000 * self.ess / self.gradients

    @property
    def per_second(self) -> float:
        """Effective draws per second."""
        return self.ess / self.seconds

    def __str__(self) -> str:
        r_hat = float(np.max(split_gelman_rubin(self.draws)))
        note = f", {self.note}" if self.note else ""
        return f"ESS {self.ess:.0f}, R-hat {r_hat:.3f}{note}"


@functools.cache
def digits_energy(sigma: float, num_steps: int) -> neb.AbstractEnergy:
    """The digits' energy at that sigma: a 3 x 256 MLP, trained in both stages as in the demo."""
    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32)
    train = np.asarray(train_test_split(images, test_size=297, random_state=0)[0])
    network = neb.networks.MLP((8, 8), width_size=256, depth=3, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, sigma, (8, 8), loc=train.mean(0), scale=train.std())
    keys = jax.random.split(jax.random.key(0), 2)
    settings: Any = {"batch_size": 128, "progress_bar": False}
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, num_steps), weight_decay=1.0)
    first: Any = {"num_steps": num_steps, "optimizer": optimizer, **settings}
    energy = neb.fit(energy, train, key=keys[0], **first).energy
    second: Any = {"num_steps": num_steps // 6, "objective": neb.MaximumLikelihood(), **settings}
    return neb.fit(energy, train, key=keys[1], **second).energy


def sampled(
    kernel: Any, num_warmup: int, num_samples: int, thinning: int = _THINNING, **arguments: Any
) -> tuple[MCMC, float]:
    """A run of `MCMC`, and its seconds without XLA's compilation."""
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        thinning=thinning,
        num_chains=_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.perf_counter()
    with compilations() as compiling:
        mcmc.run(jax.random.key(2), **arguments)
        jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    return mcmc, time.perf_counter() - start - sum(compiling)


def walk_chains(
    energy: neb.AbstractEnergy,
    num_steps: int,
    integrator: neb.integrators.AbstractIntegrator | None = None,
) -> Chains:
    """The default walk, or another. The slope between two run lengths leaves out fixed costs."""
    kernel, num_warmup = neb.WalkJumpKernel(energy, integrator=integrator), num_steps // 10
    short = num_steps // 10
    _, seconds_short = sampled(kernel, num_warmup, short)
    mcmc, seconds = sampled(kernel, num_warmup, num_steps)
    per_step = (seconds - seconds_short) / (num_steps - short)
    return Chains(_flat(mcmc, "y"), _CHAINS * num_steps, per_step * num_steps)


def paper_chains(energy: neb.AbstractEnergy, num_steps: int) -> Chains:
    """The paper's walk, 1,000 draws; with a bad R-hat its ESS is too high, not too low."""
    integrator, every = neb.integrators.ULA.paper(), num_steps // 1000
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=every)
    mcmc, seconds = sampled(kernel, 100, 1000, 1)
    return Chains(_flat(mcmc, "y"), _CHAINS * 1000 * every, seconds)


def nuts_chains(energy: neb.AbstractEnergy, num_draws: int) -> Chains:
    """NumPyro's NUTS with its defaults: one gradient per leapfrog step, in its field num_steps."""
    # A NUTS object can serve only one MCMC of several chains.
    nuts = lambda: NUTS(potential_fn=lambda y: energy(y))  # noqa: E731
    arguments: dict[str, Any] = {"init_params": _starts(energy), "extra_fields": ("num_steps",)}
    short = num_draws // 10
    _, seconds_short = sampled(nuts(), 500, short, 1, **arguments)
    mcmc, seconds = sampled(nuts(), 500, num_draws, 1, **arguments)
    gradients = np.asarray(mcmc.get_extra_fields()["num_steps"])
    per_draw = (seconds - seconds_short) / (num_draws - short)
    note = f"{gradients.mean():.1f} gradients per draw"
    return Chains(_flat(mcmc), float(gradients.sum()), per_draw * num_draws, note)


def mclmc_chains(blackjax: Any, energy: neb.AbstractEnergy, num_steps: int, *, low_rank: bool):
    """BlackJAX's MCLMC, tuned by BlackJAX on one chain with a tenth of `num_steps` per phase.

    With `low_rank` its mass matrix is a diagonal one plus one of rank 10, by its tuner for that.
    """
    mclmc = blackjax.mcmc.mclmc
    kernel, density = mclmc.build_kernel(), _log_density(energy)
    init = lambda y, key: mclmc.init(position=y, logdensity_fn=density, rng_key=key)  # noqa: E731
    starts, key = _flat_starts(energy), jax.random.key(4)
    states = jax.vmap(init)(starts, jax.random.split(jax.random.key(3), _CHAINS))
    if low_rank:
        lengths = {
            "pilot_num_warmup": num_steps,
            "pilot_num_samples": num_steps // 2,
            "lrd_num_steps": num_steps,
        }
        tuned = blackjax.mclmc_lrd_warmup(density, starts[0], key, **lengths)
    else:
        _, tuned, _ = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            num_steps=num_steps,
            state=jax.tree.map(lambda x: x[0], states),
            rng_key=key,
            logdensity_fn=density,
        )
    tuned = tuned.L, tuned.step_size, tuned.inverse_mass_matrix

    def step(density, key, state, tuned):
        length, step_size, mass = tuned
        return kernel(key, state, density, mass, length, step_size)[0], 1.0

    run = _blackjax_run(step, energy, num_steps)
    chains, _ = _blackjax_chains(step, energy, run, states, tuned, num_steps)
    note = f"L {float(tuned[0]):.3g}, step {float(tuned[1]):.3g}, 2 gradients each"
    return dataclasses.replace(chains, note=note)


def mala_chains(blackjax: Any, energy: neb.AbstractEnergy, num_steps: int) -> Chains:
    """BlackJAX's MALA at the step that has the most effective draws in a shorter run."""
    mala = blackjax.mcmc.mala
    kernel, density = mala.build_kernel(), _log_density(energy)
    states = jax.vmap(lambda y: mala.init(y, density))(_flat_starts(energy))

    def step(density, key, state, eta):
        state, info = kernel(key, state, density, eta * energy.sigma**2)
        return state, info.acceptance_rate

    def swept(run, eta, num_steps):
        chains, accepted = _blackjax_chains(step, energy, run, states, eta, num_steps)
        note = f"eta {eta} sigma^2, acceptance {accepted:.2f}"
        return dataclasses.replace(chains, note=note)

    run = _blackjax_run(step, energy, num_steps // 4)
    best = max(_MALA_STEPS, key=lambda eta: swept(run, eta, num_steps // 4).ess)
    return swept(_blackjax_run(step, energy, num_steps), best, num_steps)


def _blackjax_run(step: Callable, energy, num_steps) -> Callable:
    """Compiles all chains of `step(density, key, state, tuned) -> (state, acceptance)`."""
    density = _log_density(energy)

    @jax.jit
    def run(states, keys, tuned):
        def one(state, key):
            return step(density, key, state, tuned)

        def draw(state, key):
            state, accepted = jax.lax.scan(one, state, jax.random.split(key, _THINNING))
            return state, (state.position, jnp.mean(accepted))

        def chain(state, key):
            return jax.lax.scan(draw, state, jax.random.split(key, num_steps // _THINNING))

        return jax.vmap(chain)(states, keys)

    return run


def _blackjax_chains(step, energy, run, states, tuned, num_steps) -> tuple[Chains, float]:
    """The draws, and the mean acceptance.

    The second of two calls is timed: it is compiled, and continues where the first one ended.
    """
    keys = jax.random.split(jax.random.key(5), 2 * _CHAINS)
    states, _ = jax.block_until_ready(run(states, keys[:_CHAINS], tuned))
    start = time.perf_counter()
    _, (draws, accepted) = jax.block_until_ready(run(states, keys[_CHAINS:], tuned))
    seconds = time.perf_counter() - start
    gradients = _CHAINS * num_steps * _count_gradients(step, energy, states, tuned)
    return Chains(np.asarray(draws), gradients, seconds), float(jnp.mean(accepted))


def _count_gradients(step, energy, states, tuned):
    """How often one step calls the log density, each time for its gradient."""
    density, calls = _log_density(energy), []

    def counted(y):
        calls.append(1)
        return density(y)

    state = jax.tree.map(lambda x: x[0], states)
    jax.eval_shape(lambda key, state: step(counted, key, state, tuned), jax.random.key(0), state)
    return len(calls)


def _log_density(energy):
    return lambda y: -energy(y.reshape(energy.event_shape))


def _starts(energy):
    keys = jax.random.split(jax.random.key(1), _CHAINS)
    return jax.vmap(lambda key: neb.energies.initial_position(energy, key))(keys)


def _flat_starts(energy):
    return _starts(energy).reshape(_CHAINS, -1)


def _flat(mcmc, name=None):
    draws = mcmc.get_samples(group_by_chain=True)
    draws = np.asarray(draws if name is None else draws[name])
    return draws.reshape(*draws.shape[:2], -1)


def _ratio(what: str, ours: Chains, peer: Chains, measure: str, target: str = "") -> Row:
    of_ours, of_peer = getattr(ours, measure), getattr(peer, measure)
    shown = [f"{value:.3g} ({side})" for value, side in ((of_ours, ours), (of_peer, peer))]
    return Row(what, shown[0], shown[1], of_ours / of_peer, target)


def ess_section(settings: Settings) -> Iterator[Row]:
    """Effective draws per gradient and per second, compared with each peer."""
    blackjax, num_steps = bench_module("blackjax"), settings.num_steps
    for sigma in _SIGMAS[:1] if settings.quick else _SIGMAS:
        energy = digits_energy(sigma, settings.num_train)
        ours = {"the default walk's": walk_chains(energy, num_steps)}
        ours |= {f"{other}'s": walk_chains(energy, num_steps, other) for other in _OTHERS}
        peers = {"NUTS": (nuts_chains(energy, max(40, num_steps // 16)), ">= 5")}
        if blackjax is not None:
            for name, low_rank in (("MCLMC", False), ("low-rank MCLMC", True)):
                chains = mclmc_chains(blackjax, energy, num_steps // 2, low_rank=low_rank)
                peers[name] = (chains, ">= 1.3")
        for walk, chains in ours.items():
            for name, (peer, target) in peers.items():
                what = f"ESS per 1,000 gradients, {walk} / {name}'s, sigma {sigma}"
                yield _ratio(what, chains, peer, "per_gradient", target)
        for name, (peer, _) in peers.items():
            what = f"ESS per second, the default walk's / {name}'s, sigma {sigma}"
            yield _ratio(what, ours["the default walk's"], peer, "per_second", ">= 1")


def langevin_section(settings: Settings) -> Iterator[Row]:
    """Effective draws compared with BlackJAX's MALA and with the paper's walk."""
    blackjax, num_steps = bench_module("blackjax"), settings.num_steps
    for sigma in _SIGMAS[:1] if settings.quick else _SIGMAS:
        energy = digits_energy(sigma, settings.num_train)
        ours = walk_chains(energy, num_steps)
        if blackjax is not None:
            mala = mala_chains(blackjax, energy, num_steps)
            for what, measure in (("1,000 gradients", "per_gradient"), ("second", "per_second")):
                yield _ratio(f"ESS per {what} / MALA's, sigma {sigma}", ours, mala, measure)
        paper = paper_chains(energy, settings.num_paper)
        what = f"ESS per 1,000 gradients / of the paper's walk, sigma {sigma}"
        yield _ratio(what, ours, paper, "per_gradient", ">= 200")


def bias_section(settings: Settings) -> Iterator[Row]:
    """The mean energy of walks without a Metropolis test compared with GHMC's, in sd of phi."""
    integrators = neb.integrators
    for sigma in _SIGMAS[:1] if settings.quick else _SIGMAS:
        energy = digits_energy(sigma, settings.num_train)
        exact = _mean_energy(energy, integrators.GHMC(), settings.num_steps)
        for integrator in (integrators.BAOAB(), *_OTHERS):
            found = _mean_energy(energy, integrator, settings.num_steps)
            bias = abs(found.mean - exact.mean) / exact.sd
            spread = f"standard error {np.hypot(found.error, exact.error) / exact.sd:.3f}"
            what = f"bias of {integrator}'s mean phi in sd of phi, sigma {sigma}"
            yield Row(what, str(found), str(exact), bias, "<= 0.05", spread)


class _Mean(NamedTuple):
    name: str
    mean: float
    error: float
    sd: float
    note: str

    def __str__(self) -> str:
        return f"{self.name} {self.mean:.3f} +- {self.error:.3f}{self.note}"


def _mean_energy(energy, integrator, num_steps):
    """The mean of phi over a walk, with its standard error and standard deviation."""
    kernel = neb.WalkJumpKernel(energy, integrator=integrator)
    mcmc, _ = sampled(kernel, num_steps // 10, 2 * num_steps, 10)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    phi = -np.asarray(fields["lp"], float)
    sd, ess = float(phi.std()), float(effective_sample_size(phi))
    accepted = fields.get("acceptance_rate")
    note = "" if accepted is None else f", acceptance {float(np.mean(accepted)):.2f}"
    return _Mean(str(integrator), float(phi.mean()), sd / ess**0.5, sd, f" (ESS {ess:.0f}{note})")
