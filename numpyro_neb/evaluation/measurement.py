"""Evaluates an energy against held-out data: its walk, its density and its jumps."""

import warnings
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from tqdm.auto import tqdm

from numpyro_neb._internal.checks import (
    check_count,
    check_counts,
    check_finite,
    check_key,
    require,
)
from numpyro_neb._internal.events import check_rows, in_dtype_of
from numpyro_neb.empirical_bayes import log_normalizer, posterior_distribution
from numpyro_neb.energies.base import AbstractEnergy, AbstractEnergyFamily, check_energy
from numpyro_neb.evaluation.baselines import Judged, Look, Seen, baselines, squares, standard_error
from numpyro_neb.evaluation.families import FamilyEvaluation, at_levels
from numpyro_neb.evaluation.prototypes import prototypes_of, shares
from numpyro_neb.evaluation.two_sample import paired_test
from numpyro_neb.evaluation.verdicts import Evaluation
from numpyro_neb.integrators.base import AbstractIntegrator, Target, check_integrator, walk
from numpyro_neb.integrators.underdamped import BAOAB


@overload
def evaluate(energy: AbstractEnergy, *args: Any, **kwargs: Any) -> Evaluation: ...
@overload
def evaluate(energy: AbstractEnergyFamily, *args: Any, **kwargs: Any) -> FamilyEvaluation: ...
def evaluate(
    energy: AbstractEnergy | AbstractEnergyFamily,
    held_out: Float[Array, "n *event"] | Float[np.ndarray, "n *event"],
    *,
    key: PRNGKeyArray,
    sigmas: Sequence[float] | None = None,
    train: Float[Array, "m *event"] | Float[np.ndarray, "m *event"] | None = None,
    integrator: AbstractIntegrator = BAOAB(),  # noqa: B008 (frozen)
    num_steps: int = 2000,
    num_pairs: int = 1000,
    num_swaps: int = 999,
    num_particles: int = 500,
    num_temperatures: int = 500,
    chunk_size: int = 512,
    progress_bar: bool = True,
) -> Evaluation | FamilyEvaluation:
    r"""Is the energy right? Compares its values, and where its walk goes, with held-out data.

    From n held-out examples x_i, at most `num_pairs` chosen at random, it makes noisy ones
    y_i = x_i + sigma eps. From each y_i a separate chain walks `num_steps` steps, to y'_i.

    **The test.** If exp(-phi) is the law of the noisy data, y_i is a draw from the walk's
    stationary law, and the walk is reversible (up to the sign of its velocity). So (y_i, y'_i) and
    (y'_i, y_i) have the same law: the pair is exchangeable, *whether or not the chain mixes*, and
    the pairs are independent. `p_value` comes from a kernel two-sample test of the y' against the
    y, on the points and on their jumps, by swaps within pairs: see `two_sample.paired_test`.
    Correlated draws of one chain never enter. The p-value is exact at any number of steps for
    `GHMC` and `MALA`. `BAOAB` has a small bias, and its velocities are not N(0, I): take 20 steps
    or more. The number of steps decides the power: after too few, y'_i is still close to y_i, and
    a wrong energy goes unnoticed. `r_hat` and `memory` show that, and the verdict is then
    "untested", never "right". Modes that the walk does not cross in 10,000 steps it will not cross
    in 100,000 either: weighing such modes takes several noise levels.

    **The baselines.** The best linear denoiser and its Gaussian, N(mean, C + sigma^2 I), with the
    mean and covariance of at most 20,000 rows of `train`. Without `train` they are those of half of
    the held-out examples, judged on the other half, without shrinkage: a weak baseline unless there
    are many more examples than coordinates. With `train` there is also its kernel density,
    `MixtureEnergy(train, sigma)`. All are judged at the same noisy points.

    The verdict "right" means that n examples do not refute the energy; they cannot prove it.
    `Evaluation` says what each number means; printed, it is a table with a verdict.

    Memory grows as num_pairs^2 and as chunk_size times what the network needs for one event. At
    most 5e7 numbers of `train` are read, and only the chosen held-out examples, so both may be
    arrays on disk.

    Args:
        energy: One energy at one noise level, or a family, of which several levels are evaluated.
        held_out: Clean examples that the energy has not seen, independent of one another, of shape
            (n, *event_shape), at least 20.
        key: A JAX random key; the same key gives the same result.
        sigmas: The noise levels at which to evaluate a family; by default four, spread evenly over
            the logarithm of its range.
        train: The examples the energy was trained on, for comparison, of the same event shape.
        integrator: The step of the walk.
        num_steps: Steps of each chain, one gradient each.
        num_pairs: The maximum number of held-out examples to use, at least 20.
        num_swaps: Swaps in the permutation test: the smallest p-value is 1 / (1 + num_swaps).
        num_particles: For `log_normalizer`.
        num_temperatures: For `log_normalizer`.
        chunk_size: How many points or chains are processed at once.
        progress_bar: Whether to show tqdm bars.

    Returns:
        The evaluation; of a family a `FamilyEvaluation`, with one for each noise level.

    Raises:
        TypeError: If `energy` is neither an energy nor a family, key is not a random key,
            integrator is not an integrator, or the examples are not floats.
        ValueError: If sigmas are given for an energy of one noise level, or are outside of the
            family's range, the examples are of another shape, too few or not finite, a count is too
            small, or the integrator starts without a velocity.
        FloatingPointError: If phi or its gradient is not finite at noisy held-out examples.

    Reference:
        Besag and Clifford, Generalized Monte Carlo significance tests, Biometrika 76 (1989);
        Gretton et al., A kernel two-sample test, JMLR 13 (2012).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> x = jax.random.normal(jax.random.key(0), (100, 1))
        >>> narrow = neb.MixtureEnergy(jnp.zeros((1, 1)), 0.5)  # knows the noise, not the data
        >>> found = neb.evaluate(narrow, x, key=jax.random.key(1), num_steps=100,
        ...                      num_temperatures=50, progress_bar=False)
        >>> found.p_value < 0.01
        True
    """
    if isinstance(energy, AbstractEnergyFamily):
        rest = (train, integrator, num_steps, num_pairs, num_swaps, num_particles)
        rest += (num_temperatures, chunk_size, progress_bar)
        return at_levels(energy, sigmas, key, evaluate, held_out, rest)
    require(sigmas is None, f"sigmas must be None for an energy of one noise level, got {sigmas}")
    check_energy(energy, single=True)
    check_key(key)
    _check_moving(integrator)
    check_counts(num_steps=num_steps, num_swaps=num_swaps, chunk_size=chunk_size)
    num_pairs = check_count("num_pairs", num_pairs, _FEWEST)
    settings = {"num_particles": num_particles, "num_temperatures": num_temperatures}
    check_counts(2, **settings)
    shape, rng = energy.event_shape, np.random.default_rng(_seed(key))
    x = _chosen("held_out", held_out, shape, num_pairs, rng, _FEWEST)
    if train is not None:
        train = _chosen("train", train, shape, max(1, _MOST_NUMBERS // prod(shape)), rng)
    key_noise, key_z, key_walk, key_draws = jax.random.split(key, 4)
    notes = [] if train is None else _seen_before(x, train)
    look = Look(min(chunk_size, len(x)), progress_bar)  # one compiled shape for all
    noisy = _noisy(energy, x, key_noise)
    data = look(energy, noisy)
    if not all(np.all(np.isfinite(values)) for values in data):
        raise FloatingPointError("energy and its jumps must be finite at noisy held-out examples")
    log_z, log_z_error = _log_z(energy, key_z, settings, progress_bar, notes)
    judged = Judged(x, noisy, -data.phi - log_z, squares(x, data.jump), log_z_error)
    walked = _walk(energy, integrator, noisy[0], key_walk, num_steps, chunk_size, progress_bar)
    fields: dict[str, Any] = (
        _of_density(energy, judged, data, log_z, key_draws)
        | baselines(judged, energy.sigma, train, look, notes)
        | _mixing(walked)
        | _of_walk(
            energy, judged, data, walked, look, x if train is None else train, num_swaps, rng
        )
        | _of_columns(energy, x, walked, key_draws, rng, notes, progress_bar)
    )
    return Evaluation(
        sigma=float(energy.sigma),
        event_shape=shape,
        num_pairs=len(x),
        num_steps=num_steps,
        num_diverging=int(np.sum(~walked.finite)),
        notes=tuple(notes),
        **fields,
    )


_AT_REST = "integrator must start with random velocities, initial_velocity='gaussian', got 'zero'"
_FEWEST = 20
_MOST_NUMBERS = 50_000_000
_NUM_RECORDED = 64  # chains
_NUM_DRAWS = 100  # of each recorded chain


class _Walked(NamedTuple):
    """Where the chains ended, and what some of them recorded on the way.

    Attributes:
        y: The ends, of shape (n, *event_shape).
        finite: Which ends are finite.
        trace: y, of shape (chains, draws, coordinates).
        phi_trace: phi, of shape (chains, draws).
        squared_velocity: The mean over the second half; None for an overdamped walk.
    """

    y: np.ndarray
    finite: np.ndarray
    trace: np.ndarray
    phi_trace: np.ndarray
    squared_velocity: float | None


def _check_moving(integrator):
    check_integrator(integrator)
    moving = getattr(integrator, "initial_velocity", "gaussian") == "gaussian"
    require(moving, _AT_REST)


def _seed(key):
    return jax.random.randint(key, (), 0, np.iinfo(np.int32).max).item()


def _chosen(name, data, shape, most, rng, least=1):
    """At most `most` examples, in random order; no others are read from an array on disk.

    The first few are a random sample too, whatever the order of the data.
    """
    data = check_rows(name, data, shape)
    few = f"{name} must hold at least {least} examples, got {len(data)}"
    require(len(data) >= least, few)
    rows = rng.permutation(len(data))[:most]
    order = np.argsort(rows)
    chosen = np.empty((len(rows), *shape), data.dtype)
    chosen[order] = data[rows[order]]
    check_finite(name, chosen, in_jax=True)
    return chosen


def _seen_before(x, train):
    """A note on the held-out examples that are also in train, if there are any."""
    known = {row.tobytes() for row in train.astype(x.dtype)}
    shared = sum(row.tobytes() in known for row in x)
    text = (
        f"{shared} of the {len(x)} held-out examples are in train as well, so that the kernel"
        " density knows them: give examples that the energy has not seen"
    )
    return [text] if shared else []


def _noisy(energy, x, key):
    """Noisy copies of each example, of shape (copies, n, *event_shape)."""
    clean = in_dtype_of(energy, x)
    copies = max(1, min(10, 4000 // len(x)))
    noise = jax.random.normal(key, (copies, *clean.shape), clean.dtype)
    return np.asarray(clean[None] + energy.sigma * noise)


def _log_z(energy, key, settings, progress_bar, notes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value, error = log_normalizer(energy, key, **settings, progress_bar=progress_bar)
        except FloatingPointError as problem:
            notes.append(f"log Z is not known: {problem}")
            return np.nan, np.nan
    notes.extend(f"log Z: {warning.message}" for warning in caught)
    return float(value), float(error)


def _of_density(energy, judged, data, log_z, key) -> dict[str, Any]:
    """The fields that do not need a walk."""
    loss, density = judged.squares.mean(0), judged.log_density.mean(0)
    stein = _stein(energy, judged.noisy, data.jump, judged.noisy[0].mean(0)).mean(0)
    return {
        "denoising_loss": float(loss.mean()),
        "denoising_loss_error": standard_error(loss),
        "noise_loss": float(energy.sigma) ** 2 * prod(energy.event_shape),
        "log_likelihood": float(density.mean()),
        "log_likelihood_error": judged.log_z_error,
        "sampling_error": standard_error(density),
        "log_normalizer": log_z,
        "stein_data": float(stein.mean()),
        "stein_data_error": standard_error(stein),
        "negative_variances": float(_negative_share(energy, judged.noisy[0][:128], key)),
    }


def _stein(energy, y, jump, mean):
    """(y - mean).grad phi(y) / d."""
    product = (y - mean) * (np.asarray(y, float) - jump) / float(energy.sigma) ** 2
    axes = tuple(range(y.ndim - len(energy.event_shape), y.ndim))
    return product.mean(axes)


@eqx.filter_jit
def _begin(energy, integrator, y, key):
    start = lambda y, key: integrator.init(Target(energy, energy.sigma), y, key)  # noqa: E731
    return jax.vmap(start)(y, jax.random.split(key, len(y)))


@eqx.filter_jit
def _go_on(energy, integrator, states, key, num_steps):
    target = Target(energy, energy.sigma)

    def one(state, key):
        state, _ = walk(integrator, target, state, key, num_steps)
        return state, integrator.observe(target, state)

    return jax.vmap(one)(states, jax.random.split(key, len(states.potential)))


def _walk(energy, integrator, y, key, num_steps, chunk_size, progress_bar):
    """Walks a chain from each y and records little of it, however large the event."""
    n, d = len(y), prod(energy.event_shape)
    count = -(-n // chunk_size)
    size = -(-n // count)
    # Some chains run twice, so that all chunks have the same size.
    rows = (np.arange(count * size) % n).reshape(count, size)
    keys = jax.random.split(key, count)
    states = [
        _begin(energy, integrator, jnp.asarray(y[r]), k) for r, k in zip(rows, keys, strict=True)
    ]
    draws = min(_NUM_DRAWS, num_steps)
    lengths = np.full(draws, num_steps // draws)
    lengths[-1] += num_steps % draws
    coordinates = np.sort(np.random.default_rng(0).permutation(d)[:1000])
    trace, phi_trace, squares = [], [], []
    seen: Any = None
    with tqdm(total=num_steps, disable=not progress_bar, desc="walk") as bar:
        for i, length in enumerate(lengths):
            outs = [
                _go_on(energy, integrator, state, jax.random.fold_in(k, i), int(length))
                for state, k in zip(states, keys, strict=True)
            ]
            states, seen = [out[0] for out in outs], [out[1] for out in outs]
            recorded = np.asarray(seen[0].position[:_NUM_RECORDED])
            trace.append(recorded.reshape(len(recorded), d)[:, coordinates])
            phi_trace.append(np.asarray(seen[0].potential[:_NUM_RECORDED]))
            if seen[0].velocity is not None and 2 * i >= draws:
                with np.errstate(over="ignore", invalid="ignore"):  # a diverging walk
                    squares.append([np.mean(np.square(s.velocity)) for s in seen])
            bar.update(int(length))
    end = np.concatenate([s.position for s in seen])[:n]
    phi = np.concatenate([s.potential for s in seen])[:n]
    finite = np.isfinite(phi) & np.all(np.isfinite(end.reshape(n, d)), axis=1)
    squared = float(np.mean(squares)) if squares else None
    return _Walked(
        end,
        finite,
        np.stack(trace, 1),
        np.stack(phi_trace, 1),
        squared,
    )


def _mixing(walked) -> dict[str, Any]:
    """R-hat and effective draws of the second half of the recorded chains."""
    half = walked.trace.shape[1] // 2
    found = {"kinetic_temperature": walked.squared_velocity}
    whole = np.all(np.isfinite(walked.phi_trace), axis=1)
    for name, trace in (("", walked.trace), ("_phi", walked.phi_trace[..., None])):
        kept = trace[whole, half:].astype(float)
        found["r_hat" + name] = found["effective_draws" + name] = np.nan
        if len(kept) > 1 and kept.shape[1] >= 4:
            with np.errstate(invalid="ignore", divide="ignore"):  # a chain that never moved
                found["r_hat" + name] = float(np.nanmax(split_gelman_rubin(kept)))
                found["effective_draws" + name] = float(np.nanmin(effective_sample_size(kept)))
    return found


def _of_walk(energy, judged, data, walked, look, examples, num_swaps, rng) -> dict[str, Any]:
    """Compares the walk's ends y' with the noisy examples y they came from, pair by pair."""
    kept = walked.finite
    before, after = judged.noisy[0][kept], walked.y[kept]
    start = Seen(data.phi[0][kept], data.jump[0][kept])
    prototypes = prototypes_of(examples, max(2, min(10, len(judged.x) // 30)), rng)
    if len(after) < 2:
        return _no_walk(prototypes, energy.event_shape)
    end = look(energy, after)  # like start, so that not even rounding tells them apart
    test = paired_test(
        {"y": before, "jump": start.jump},
        {"y": after, "jump": end.jump},
        num_swaps=num_swaps,
        seed=int(rng.integers(2**32)),
    )
    stein = _stein(energy, after, end.jump, judged.noisy[0].mean(0))
    rise = end.phi - start.phi
    return (
        {"phi_data": start.phi, "phi_walk": end.phi, "prototypes": prototypes}
        | shares(start.jump, end.jump, prototypes, rng)
        | _moments(before, after)
        | {
            "p_value": test.p_value,
            "auc": test.auc,
            "phi_difference": float(rise.mean()),
            "phi_difference_error": standard_error(rise),
            "stein_walk": float(stein.mean()),
            "stein_walk_error": standard_error(stein),
        }
    )


def _no_walk(prototypes, shape):
    names = (
        "p_value auc phi_difference phi_difference_error stein_walk stein_walk_error memory"
        " total_variation total_variation_error total_variation_by_chance sd_ratio sd_ratio_error"
        " largest_mean_difference"
    )
    by_prototype = ("data_shares", "walk_shares", "share_errors")
    return (
        dict.fromkeys(names.split(), np.nan)
        | dict.fromkeys(by_prototype, np.full(len(prototypes), np.nan))
        | dict.fromkeys(("phi_data", "phi_walk"), np.zeros(0))
        | {"prototypes": prototypes, "sd_ratios": np.full(shape, np.nan)}
    )


def _moments(before, after):
    """Means and standard deviations of y by coordinate, the walk's against the data's."""
    n, shape = len(before), before.shape[1:]
    a, b = (y.reshape(n, -1).astype(float) for y in (before, after))
    step, sds = b - a, b.std(0, ddof=1) / a.std(0, ddof=1)
    errors = np.maximum(step.std(0, ddof=1), np.finfo(float).tiny) / np.sqrt(n)
    # Of log(sd), averaged over the coordinates: by the delta method, pair by pair.
    squares = [((y - y.mean(0)) ** 2 / y.var(0)).mean(1) / 2 for y in (a, b)]
    ratio = float(np.exp(np.log(sds).mean()))
    return {
        "largest_mean_difference": float(np.max(np.abs(step.mean(0)) / errors)),
        "sd_ratio": ratio,
        "sd_ratio_error": ratio * standard_error(squares[1] - squares[0]),
        "sd_ratios": sds.reshape(shape),
    }


@eqx.filter_jit
def _negative_share(energy, y, key):
    """The share of the coordinates' variances of X given y that are negative."""
    d = prod(energy.event_shape)

    def one(y, key):
        product = energy.posterior(y).product

        def variance(i):
            unit = jax.nn.one_hot(i, d, dtype=y.dtype).reshape(y.shape)
            return product(unit).reshape(-1)[i]

        return jax.lax.map(variance, jax.random.permutation(key, d)[:16])

    variances = jax.vmap(one)(in_dtype_of(energy, y), jax.random.split(key, len(y)))
    # A constant coordinate has variance zero, and half of a network's estimates fall below that.
    return jnp.mean(variances < -(energy.sigma**2) / 100)


@eqx.filter_jit
def _draw(energy, y, key):
    return posterior_distribution(energy, y).sample(key)


def _of_columns(energy, x, walked, key, rng, notes, progress_bar) -> dict[str, Any]:
    """Compares marginals and correlations of X, drawn given the walk's ends, with the examples."""
    from scipy import stats

    ks_2samp: Any = stats.ks_2samp  # its stubs lack axis
    d = prod(energy.event_shape)
    names = ("marginals", "marginals_by_chance", "correlations", "correlations_by_chance")
    rows = np.flatnonzero(walked.finite)[: 1000 if d <= 64 else 300]
    if d > 256 or len(rows) < 2:
        why = f"an event of {d} coordinates is too large" if d > 256 else "the walk diverged"
        notes.append(f"X was not drawn, nor its marginals compared: {why}")
        return dict.fromkeys(names)
    # Each draw of a large event takes d products: small parts, so that the bar knows the time.
    parts = np.array_split(rows, -(-len(rows) // (100 if d <= 64 else 20)))
    bar = tqdm(parts, disable=not progress_bar, delay=1, desc="draws of X")
    draws = [
        np.asarray(_draw(energy, in_dtype_of(energy, walked.y[part]), jax.random.fold_in(key, i)))
        for i, part in enumerate(bar)
    ]
    drawn = np.concatenate(draws).reshape(len(rows), d).astype(float)
    truth = x[rows].reshape(len(rows), d).astype(float)
    varying = truth.std(0) > 0

    def compare(a, b):
        distance = ks_2samp(a, b, axis=0, method="asymp").statistic
        if varying.sum() < 2:
            return distance, None
        gap = np.corrcoef(a[:, varying], rowvar=False) - np.corrcoef(b[:, varying], rowvar=False)
        return distance, float(np.abs(gap)[np.triu_indices(len(gap), 1)].mean())

    distances, gap = compare(drawn, truth)
    chance = []
    for _ in range(10):
        swapped = rng.choice([False, True], (len(rows), 1))
        chance.append(compare(np.where(swapped, truth, drawn), np.where(swapped, drawn, truth)))
    return {
        "marginals": np.where(varying, distances, np.nan).reshape(energy.event_shape),
        "marginals_by_chance": float(np.mean([c[0][varying].mean() for c in chance])),
        "correlations": gap,
        "correlations_by_chance": None if gap is None else float(np.mean([c[1] for c in chance])),
    }
