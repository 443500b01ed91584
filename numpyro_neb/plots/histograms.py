"""Histograms: the overlaps of data, and the energy of a walk."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from numpyro_neb._internal.checks import check_positive, check_type
from numpyro_neb.diagnostics import log_densities, refreshed_bfmi
from numpyro_neb.geometry import SphereOverlaps


def overlaps(
    summary: SphereOverlaps, *, sigma: float | None = None, ax: Axes | None = None
) -> Axes:
    """The histogram of the overlaps chi, with sigma and sigma_c marked.

    Args:
        summary: What `sphere_overlaps` returned.
        sigma: A noise level to mark.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If summary is not a `SphereOverlaps`, or sigma not a number.
        ValueError: If sigma is not positive and finite.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> x = np.random.default_rng(0).normal(size=(50, 10))
        >>> ax = neb.plots.overlaps(neb.sphere_overlaps(x), sigma=0.5)
    """
    check_type("summary", summary, SphereOverlaps, "a SphereOverlaps")
    if sigma is not None:
        sigma = check_positive("sigma", sigma)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    shares = summary.counts / (summary.num_pairs * np.diff(summary.edges))
    ax.stairs(shares, summary.edges, fill=True, alpha=0.5)
    ax.axvline(summary.max, color="C1", linestyle="--", label=rf"$\sigma_c$ = {summary.max:.3g}")
    if sigma is not None:
        ax.axvline(sigma, color="C3", label=rf"$\sigma$ = {sigma:.3g}")
    ax.set_xlabel(r"overlap $\chi$")
    ax.set_ylabel("density of pairs")
    ax.set_yticks([])
    ax.legend(frameon=False)
    return ax


def energy_transitions(data: Any, *, ax: Axes | None = None) -> Axes:
    """The spread of the energy, and how much of it a fresh momentum crosses in one draw.

    The filled histogram shows the energy phi(y) + K about its mean, with K the kinetic energy of a
    fresh momentum; the line shows the change K' - K. For a Gaussian both have the same width; if
    the line is much narrower, the walk and NUTS cross the energy's levels slowly.
    `diagnostics.refreshed_bfmi` is the ratio of their variances. (The transitions that
    `arviz.plot_energy` draws are those of the walk, which keeps part of its momentum.)

    Args:
        data: What `to_arviz` or `stream` returned for a walk.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        ValueError: If data is anything else.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=10, num_samples=100,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> ax = neb.plots.energy_transitions(neb.to_arviz(mcmc))
    """
    num_coordinates, lp = log_densities(data)
    bfmi = refreshed_bfmi(data)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    kinetic = np.random.default_rng(0).gamma(num_coordinates / 2, size=(2, lp.size))
    energy = kinetic[0] - lp.ravel()
    style = {"bins": 50, "density": True}
    ax.hist(energy - energy.mean(), **style, alpha=0.5, label=r"energy $\phi + K$")
    ax.hist(kinetic[1] - kinetic[0], **style, histtype="step", color="C1", label="change $K' - K$")
    text = ", ".join(f"{value:.2f}" for value in bfmi[:4]) + ", ..." * (len(bfmi) > 4)
    ax.legend(frameon=False, title=f"E-BFMI {text}")
    ax.set_xlabel("energy, about its mean")
    ax.set_yticks([])
    return ax
