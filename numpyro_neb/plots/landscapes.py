"""The landscape of an energy in two dimensions."""

from typing import Any

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from numpyro_neb._internal.batching import in_chunks
from numpyro_neb._internal.checks import Numbers, check_shape, finite_on_host, require
from numpyro_neb._internal.events import in_dtype_of
from numpyro_neb.energies.base import AbstractEnergy, check_energy

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_MOST_POINTS = 1000


def landscape(
    energy: AbstractEnergy,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    *,
    data: Numbers | None = None,
    walk: Numbers | None = None,
    ax: Axes | None = None,
) -> Axes:
    """An energy in two dimensions: its level lines and flow, data, and a walk with its jumps.

    The levels rise from the minimum of phi. The line of a share q, one of 10, 25, 50, 75, 90 and
    99%, encloses the smallest region that holds that share: of the noisy data Y = X + N(0, sigma^2
    I) if there are data, and otherwise of exp(-phi) in the window. Darker is lower.

    Args:
        energy: An energy of event shape (2,).
        limits: The picture's edges, ((low, high), (low, high)). By default they are the ranges of
            the data, three sigma wider on each side.
        data: The clean data X, of shape (n, 2): points, at most 1,000 of them, chosen at random.
        walk: The walk y, of shape (draws, 2): a line, with an arrow for the jump from each draw.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, or limits, data or walk are not real
            numbers.
        ValueError: If the energy, the data or the walk are not in two dimensions, limits are not
            rising or missing without data, or a number is not finite.
        FloatingPointError: If phi is not finite anywhere in the picture.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> x = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
        >>> energy = neb.MixtureEnergy(x, sigma=0.5)
        >>> walk = energy.sample(jax.random.key(0), (5,))
        >>> ax = neb.plots.landscape(energy, data=x, walk=walk)
    """
    check_energy(energy, single=True)
    event = energy.event_shape
    require(event == (2,), f"energy must have the event shape (2,), got {event}")
    x, y = _pairs("data", data, "n"), _pairs("walk", walk, "draws")
    edges = _edges(limits, x, 3 * float(energy.sigma))
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    across, along = (np.linspace(low, high, 150) for low, high in edges)
    points = np.stack(np.meshgrid(across, along), axis=-1)
    phi, score = _phi_and_score(energy, points)
    levels = _levels(phi) if x is None else _levels_of_data(energy, phi, x)
    if len(levels) > 1:  # of a flat energy there are none
        shown = np.ma.masked_invalid(phi)
        ax.contourf(across, along, shown, levels=levels, cmap="Blues_r", alpha=0.7)
        ax.contour(across, along, shown, levels=levels[1:], colors="0.3", linewidths=0.5)
    flow = score[::5, ::5].transpose(2, 0, 1)
    style = {"density": 0.8, "color": "0.6", "linewidth": 0.4, "arrowsize": 0.6}
    ax.streamplot(across[::5], along[::5], *flow, **style)
    if x is not None:
        _scatter(ax, x)
    if y is not None:
        jump = np.asarray(jax.vmap(energy.denoise)(in_dtype_of(energy, y)))
        ax.plot(*y.T, color="C1", linewidth=0.8, marker=".", label="walk $y$")
        arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
        ax.quiver(*y.T, *(jump - y).T, color="C3", **arrows, label=r"jump $\hat x(y)$")
    if x is not None or y is not None:
        ax.legend(loc="upper right", fontsize=8)
    ax.set(xlim=edges[0], ylim=edges[1], aspect="equal")
    return ax


def _pairs(name: str, value: Any, count: str) -> np.ndarray | None:
    if value is None:
        return None
    pairs = finite_on_host(name, value)
    check_shape(name, pairs, (count, 2))
    return pairs


def _edges(limits: Any, x: np.ndarray | None, margin: float) -> np.ndarray:
    if limits is None:
        if x is None:
            raise ValueError("limits must be given if there are no data, got None")
        low, high = x.min(0), x.max(0)
        return np.stack([low - margin, high + margin], axis=1)
    edges = finite_on_host("limits", limits)
    rising = edges.shape == (2, 2) and np.all(edges[:, 0] < edges[:, 1])
    require(rising, f"limits must be ((low, high), (low, high)), rising, got {limits}")
    return edges


@eqx.filter_jit
def _each(energy, y):
    return jax.vmap(lambda y: (energy(y), energy.score(y)))(y)


def _phi_and_score(energy, points):
    """Energy and score at points of shape (*batch, 2)."""
    flat = in_dtype_of(energy, points.reshape(-1, 2))
    phi, score = in_chunks(lambda y: _each(energy, y), (flat,), 1024, progress_bar=False)
    return np.asarray(phi, float).reshape(points.shape[:-1]), np.reshape(score, points.shape)


def _levels(phi):
    """The minimum of phi on a grid, and the levels below which exp(-phi) has each share."""
    values = np.sort(_finite(phi))
    mass = np.cumsum(np.exp(values[0] - values))
    places = np.searchsorted(mass, np.multiply(_SHARES, mass[-1]))
    return np.unique([values[0], *values[places]])


def _levels_of_data(energy, phi, x):
    """The minimum of phi, and its quantiles at noisy data."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.tile(x, (-(-4000 // len(x)), 1)))[:4000]
    noisy, _ = _phi_and_score(energy, rows + float(energy.sigma) * rng.normal(size=rows.shape))
    quantiles = np.quantile(_finite(noisy), _SHARES)
    return np.unique([min(_finite(phi).min(), quantiles[0]), *quantiles])


def _finite(phi):
    if not np.any(np.isfinite(phi)):
        raise FloatingPointError("energy must be finite somewhere in the picture")
    return phi[np.isfinite(phi)]


def _scatter(ax, x):
    label = "data $x$"
    if len(x) > _MOST_POINTS:
        label += f", {_MOST_POINTS:,} of {len(x):,}"
        x = np.random.default_rng(0).permutation(x)[:_MOST_POINTS]
    ax.plot(*x.T, "k.", markersize=2, alpha=0.6, label=label)
