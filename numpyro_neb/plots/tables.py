"""The marginals of a table: data and draws, a panel for each column."""

from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from numpyro_neb._internal.checks import finite_on_host, require, short

_MOST_PANELS = 24


def marginals(data: Any, draws: Any, *, axes: np.ndarray | None = None) -> np.ndarray:
    """The marginals of data and of draws: two histograms in a panel for each column.

    A panel's title is the column's name and the Kolmogorov-Smirnov distance of the two samples. Of
    more than 24 columns those 24 are shown whose distances are the largest, and the title of the
    figure says so.

    Compare like with like: the walk y with noisy data, and draws of X given y with clean data. The
    jumps x are narrower than X by the mean of its variance given y.

    Args:
        data: A table of n rows: an array of shape (n, *event), each coordinate of an event being a
            column, a DataFrame, or an `xarray.DataArray`.
        draws: Another one, with any number of rows. It may be what `to_arviz` or `stream` returned
            for a walk on an energy, of which the jumps `x` are taken, or one variable of that, such
            as `posterior["y"]`: each draw of each chain is a row.
        axes: Axes to draw on, at least one for each panel; new ones by default.

    Returns:
        The axes, one for each panel. Names are those of a DataFrame's columns, or of the
        coordinates that were given to `to_arviz`; if both tables have names, columns of the same
        name are compared.

    Raises:
        TypeError: If either does not hold real numbers, or holds several variables but no `x`.
        ValueError: If the columns differ, a number is not finite, or there are too few axes.

    Example:
        >>> import jax, numpy as np, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> table = np.random.default_rng(0).normal(size=(50, 2))
        >>> energy = neb.MixtureEnergy(table, sigma=0.5)
        >>> mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=10, num_samples=100,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> found = neb.to_arviz(mcmc, {"column": ["mass", "age"]}, {"x": ["column"]})
        >>> [ax.get_title().split(":")[0] for ax in neb.plots.marginals(table, found)]
        ['mass', 'age']
    """
    (names, a), (others, b) = _table("data", data), _table("draws", draws)
    same = a.shape[1] == b.shape[1]
    require(same, f"draws must have the {a.shape[1]} columns of data, got {b.shape[1]}")
    if names and others and names != others:
        unique = sorted(names) == sorted(set(others))
        require(unique, f"draws must have the columns {short(names)} of data, got {short(others)}")
        b = b[:, [others.index(name) for name in names]]
    names = names or others or [f"column {i}" for i in range(a.shape[1])]
    distances = _distances(a, b)
    shown = np.sort(np.argsort(-distances, kind="stable")[:_MOST_PANELS])
    panels = _panels(len(shown)) if axes is None else np.ravel(np.asarray(axes, object))
    what = f"axes must hold at least {len(shown)} matplotlib axes, got {len(panels)}"
    require(len(panels) >= len(shown) and all(isinstance(ax, Axes) for ax in panels), what)
    for ax, column in zip(panels, shown, strict=False):
        both = np.concatenate([a[:, column], b[:, column]])
        style = {"bins": np.histogram_bin_edges(both, 30), "density": True}
        ax.hist(a[:, column], **style, alpha=0.5, label="data")
        ax.hist(b[:, column], **style, histtype="step", color="C1", label="draws")
        ax.set_title(f"{names[column]}: {distances[column]:.2f}", fontsize=8)
        ax.set_yticks([])
    panels[0].legend(frameon=False, fontsize=8)
    if len(shown) < len(names):
        text = f"the {len(shown)} of {len(names)} columns whose marginals differ most"
        panels[0].figure.suptitle(text, fontsize=9)
    return panels[: len(shown)]


def _table(name: str, value: Any) -> tuple[list[str] | None, np.ndarray]:
    """The columns' names, if they have any, and the numbers, of shape (rows, columns)."""
    value = getattr(value, "posterior", value)
    if hasattr(value, "data_vars"):
        known = list(value.data_vars)
        text = f"{name} must hold one variable, or x among others, got {known}: give one of them"
        require("x" in known, text, TypeError)
        value = value["x"]
    names = None
    if hasattr(value, "dims") and hasattr(value, "transpose"):
        # arviz.extract puts its draws, the dimension sample, last.
        rows = [dim for dim in ("chain", "draw", "sample") if dim in value.dims] or value.dims[:1]
        events = [dim for dim in value.dims if dim not in rows]
        value = value.transpose(*rows, *events)
        labels = [value[dim].values.tolist() for dim in events]
        if any(label != list(range(len(label))) for label in labels):
            names = [", ".join(map(str, one)) for one in product(*labels)]
        value = value.values.reshape(-1, *value.shape[len(rows) :])
    elif hasattr(value, "columns") and list(value.columns) != list(range(len(value.columns))):
        names = list(map(str, value.columns))
    table = finite_on_host(name, value)
    some = table.ndim > 0 and table.size > 0
    require(some, f"{name} must hold at least one row and column, got shape {table.shape}")
    return names, table.reshape(len(table), -1)


def _distances(a, b):
    """The Kolmogorov-Smirnov distance of each pair of columns."""
    from scipy import stats

    ks_2samp: Any = stats.ks_2samp  # its stubs lack axis
    return np.asarray(ks_2samp(a, b, axis=0, method="asymp").statistic)


def _panels(count):
    columns = min(count, 6 if count > 12 else 4)
    rows = -(-count // columns)
    size = (2.2 * columns, 1.8 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for ax in panels.flat[count:]:
        figure.delaxes(ax)
    return panels.ravel()[:count]
