"""A picture of what `evaluate` found."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from numpyro_neb._internal.checks import check_type, require
from numpyro_neb.evaluation.verdicts import Evaluation


def evaluation(evaluation: Evaluation, *, axes: np.ndarray | None = None) -> np.ndarray:
    """What `evaluate` found: phi, the shares of the prototypes, the widths of the coordinates.

    Left: histograms of phi at noisy held-out data and at the ends of the walk, which agree if the
    energy is right. Middle: the shares of the jumps nearest to each prototype, of the data and of
    the walk, with two standard errors of their difference; image prototypes are shown below their
    bars. Right: the walk's standard deviations of y divided by the data's, as an image or as a
    point for each coordinate.

    Args:
        evaluation: What `evaluate` returned.
        axes: Three axes to draw on; new ones by default.

    Returns:
        The three axes.

    Raises:
        TypeError: If evaluation is not an `Evaluation`.
        ValueError: If axes does not hold three axes.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> x = jax.random.normal(jax.random.key(0), (100, 1))
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 1)), 0.5)
        >>> found = neb.evaluate(energy, x, key=jax.random.key(1), num_steps=100,
        ...                      num_temperatures=50, progress_bar=False)
        >>> axes = neb.plots.evaluation(found)
    """
    check_type("evaluation", evaluation, Evaluation, "an Evaluation")
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    axes = np.asarray(axes, object)
    three = axes.shape == (3,) and all(isinstance(ax, Axes) for ax in axes)
    require(three, f"axes must be three matplotlib axes, got an array of shape {axes.shape}")
    _histograms(evaluation, axes[0])
    _shares(evaluation, axes[1])
    _widths(evaluation, axes[2])
    axes[0].set_title(f"{evaluation.outcome}: p = {evaluation.p_value:.2g}", loc="left")
    return axes


def _histograms(found, ax):
    both = np.concatenate([found.phi_data, found.phi_walk])
    style = {"bins": np.histogram_bin_edges(both, 30), "density": True}
    ax.hist(found.phi_data, **style, alpha=0.5, label="noisy data")
    ax.hist(found.phi_walk, **style, histtype="step", color="C1", label="walk")
    ax.set_xlabel(r"energy $\phi(y)$, nats")
    ax.set_yticks([])
    ax.legend(frameon=False)


def _shares(found, ax):
    places = np.arange(len(found.prototypes))
    ax.bar(places - 0.2, found.data_shares, 0.4, alpha=0.5, label="data")
    style = {"fill": False, "edgecolor": "C1", "ecolor": "C1", "label": "walk"}
    ax.bar(places + 0.2, found.walk_shares, 0.4, yerr=2 * found.share_errors, **style)
    ax.set_ylabel("share of the jumps")
    ax.margins(y=0.3)  # room for the legend
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    if len(found.event_shape) != 2:
        ax.set_xticks(places)
        ax.set_xlabel("prototype")
        return
    ax.set_xticks([])
    ax.set_xlabel("prototype", labelpad=34)
    low, high = found.prototypes.min(), found.prototypes.max()
    for place, image in zip(places, found.prototypes, strict=True):
        box = ax.inset_axes((place - 0.45, -0.2, 0.9, 0.18), transform=ax.get_xaxis_transform())
        box.imshow(image, cmap="gray_r", vmin=low, vmax=high)
        box.axis("off")


def _widths(found, ax):
    ratios = found.sd_ratios
    ax.set_title("sd of y, walk / data", loc="left")
    if ratios.ndim == 2:
        reach = max(0.1, np.abs(ratios - 1).max()) if np.all(np.isfinite(ratios)) else 1.0
        picture = ax.imshow(ratios, cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach)
        ax.figure.colorbar(picture, ax=ax)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    ax.axhline(1, color="C0", linewidth=0.8)
    ax.plot(ratios.ravel(), ".", color="C1")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("coordinate")
