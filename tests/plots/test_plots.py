import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.contour import ContourSet
from matplotlib.patches import Polygon, Rectangle
from matplotlib.quiver import Quiver
from numpyro.infer import MCMC
from scipy.stats import ks_2samp

import numpyro_neb as neb
from numpyro_neb.memories import FoundMemories

IMAGES = np.random.default_rng(0).random((4, 3, 5))


def picture(ax):
    return ax.images[0].get_array()


def test_denoising_shows_every_image_in_its_row():
    ax = neb.plots.denoising(IMAGES, IMAGES + 1, IMAGES + 2)
    canvas = picture(ax)
    assert canvas.shape == (3 * 4, 4 * 6)
    for row in range(3):
        for column in range(4):
            tile = canvas[4 * row : 4 * row + 3, 6 * column : 6 * column + 5]
            np.testing.assert_allclose(tile, IMAGES[column] + row)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["clean $x$", "noisy $y$", "jump"]


def test_walk_jump_has_a_row_for_each_chain():
    _, ax = plt.subplots()
    assert neb.plots.walk_jump(IMAGES.reshape(2, 2, 3, 5), ax=ax) is ax
    np.testing.assert_allclose(picture(ax)[4:7, 6:11], IMAGES[3])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["chain 0", "chain 1"]


def test_paths_are_shown_on_the_scale_of_the_memories():
    paths = IMAGES.reshape(2, 2, 3, 5)
    ax = neb.plots.recall_paths(paths)
    np.testing.assert_allclose(picture(ax)[4:7, 6:11], IMAGES[3])
    assert ax.images[0].get_clim() == (paths[:, -1].min(), paths[:, -1].max())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1"]


def found_memories(stable):
    counts, basins = np.array([7, 2, 1, 1]), np.zeros(11, int)
    all_stable = np.array([True, True, True, stable])
    return FoundMemories(IMAGES, np.zeros(4), all_stable, counts, basins, np.ones(4))


def test_memories_with_the_sizes_of_their_basins():
    ax = neb.plots.memories(found_memories(False), columns=3)
    canvas = picture(ax)
    assert canvas.shape == (2 * 5, 3 * 6)
    np.testing.assert_allclose(canvas[:3, 6:11], IMAGES[1])
    np.testing.assert_allclose(canvas[5:8, :5], IMAGES[3])
    assert [text.get_text() for text in ax.texts] == ["7", "2", "1", "1, saddle"]


def test_overlaps_are_a_density_with_both_sigmas():
    overlaps = neb.sphere_overlaps(IMAGES)
    ax = neb.plots.overlaps(overlaps, sigma=0.2)
    values, edges, _ = ax.patches[0].get_data()
    np.testing.assert_allclose(np.sum(values * np.diff(edges)), 1)
    assert [line.get_xdata()[0] for line in ax.lines] == [overlaps.max, 0.2]
    assert len(neb.plots.overlaps(overlaps).lines) == 1


def test_landscape_shows_flow_walk_and_jumps():
    energy = neb.MixtureEnergy(np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.5)
    walk = np.array([[0.5, 0.5], [-0.3, 0.2], [0.0, 1.0]], np.float32)
    ax = neb.plots.landscape(energy, ((-2.0, 2.0), (-1.0, 1.0)), walk=walk)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), walk)
    (arrows,) = [c for c in ax.collections if isinstance(c, Quiver)]
    ends = walk + np.stack([arrows.U, arrows.V], axis=1)
    expected = np.stack([np.tanh(walk[:, 0] / 0.25), np.zeros(3)], axis=1)
    np.testing.assert_allclose(ends, expected, atol=1e-5)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))


def test_bad_arguments(untyped):
    with pytest.raises(ValueError, match=r"noisy must have shape \(n, height, width\), got \(4,\)"):
        neb.plots.denoising(IMAGES, np.zeros(4), IMAGES)
    with pytest.raises(ValueError, match=r"x must have shape \(chains, draws, height, width\)"):
        neb.plots.walk_jump(IMAGES)
    with pytest.raises(ValueError, match=r"paths must have shape \(cues, times, height, width\)"):
        neb.plots.recall_paths(IMAGES)
    with pytest.raises(ValueError, match="columns must be a positive int, got 0"):
        neb.plots.memories(found_memories(True), columns=0)
    none = FoundMemories(IMAGES[:0], *(np.zeros(0, int),) * 5)
    with pytest.raises(ValueError, match="found must hold at least one memory, got none"):
        neb.plots.memories(none)
    limits = ((-1.0, 1.0), (-1.0, 1.0))
    with pytest.raises(ValueError, match=r"energy must have the event shape \(2,\), got \(3,\)"):
        neb.plots.landscape(neb.MixtureEnergy(np.eye(3), 0.5), limits)
    with pytest.raises(ValueError, match=r"walk must have shape \(draws, 2\), got \(4,\)"):
        neb.plots.landscape(neb.MixtureEnergy(np.eye(2), 0.5), limits, walk=np.zeros(4))
    with pytest.raises(TypeError, match=r"energy must be a numpyro_neb\.AbstractEnergy"):
        neb.plots.landscape(None, limits)


SHARES = np.array([0.1, 0.25, 0.5, 0.75, 0.9, 0.99])


def levels(ax):
    """The levels of the filled contours, above the lowest, and where that is."""
    filled = next(c for c in ax.collections if isinstance(c, ContourSet) and c.filled)
    return filled.levels[1:] - filled.levels[0], filled.levels[0]


@pytest.mark.parametrize("limits", [((-5.0, 5.0), (-5.0, 5.0)), ((-20.0, 8.0), (-8.0, 8.0))])
def test_levels_enclose_shares_of_the_density(limits):
    """Of N(0, I): phi rises by chi^2_2 / 2 above its minimum, so by -log(1 - q)."""
    ax = neb.plots.landscape(neb.MixtureEnergy(np.zeros((1, 2)), 1.0), limits)
    found, low = levels(ax)
    # A line moves by no more than half a diagonal of the grid's cell, at the radius of the line.
    cell = np.hypot(*np.diff(limits)[:, 0]) / 149 / 2
    exact = -np.log1p(-SHARES)
    assert np.all(np.abs(found - exact) < cell * np.sqrt(2 * exact) + cell**2)
    np.testing.assert_allclose(low, np.log(2 * np.pi), atol=cell**2)


def test_levels_enclose_shares_of_noisy_data_and_the_window_holds_them():
    x = np.random.default_rng(1).normal(size=(3000, 2))
    # N(0, I + sigma^2 I), of the minimum log(2 pi 1.25).
    energy = neb.MixtureEnergy(np.zeros((1, 2)), 0.5, covariances=np.eye(2)[None])
    ax = neb.plots.landscape(energy, data=x)
    found, _ = levels(ax)
    # The quantiles of 4,000 draws of an exponential law, which share 3,000 clean ones.
    errors = np.sqrt(SHARES / (1 - SHARES) / 3000)
    assert np.all(np.abs(found + np.log1p(-SHARES)) < 5 * errors)
    low, high = x.min(0) - 1.5, x.max(0) + 1.5
    np.testing.assert_allclose([ax.get_xlim(), ax.get_ylim()], np.stack([low, high], 1))
    (points,) = (line for line in ax.lines if line.get_marker() == ".")
    shown = points.get_xydata()
    assert len(shown) == 1000
    assert set(map(tuple, shown)) <= set(map(tuple, x))
    assert points.get_label() == "data $x$, 1,000 of 3,000"


@pytest.mark.parametrize("sigma", [0.05, 0.15])
def test_two_moons_look_like_two_moons(sigma):
    """The lines about half of the noisy data lie on the moons, and on both."""
    angles = np.linspace(0, np.pi, 200)
    moons = [np.stack([np.cos(angles), np.sin(angles)], 1)]
    moons += [np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], 1)]
    x = np.concatenate(moons)
    for window in ({"data": x}, {"limits": ((-4.0, 5.0), (-4.0, 4.0))}):
        ax = neb.plots.landscape(neb.MixtureEnergy(x, sigma), **window)
        lines = next(c for c in ax.collections if isinstance(c, ContourSet) and not c.filled)
        half = lines.get_paths()[2].vertices
        # The nearest of the points, which are much nearer to one another than sigma. Across a moon
        # half of N(0, sigma^2) is within 0.67 sigma; the grid of the wide window adds a cell.
        apart = np.sqrt(((half[:, None] - x) ** 2).sum(-1))
        assert apart.min(1).max() < sigma + 0.06
        assert {i // 200 for i in apart.argmin(1)} == {0, 1}


def test_a_landscape_far_from_the_origin():
    """The grid is of float64, and the energy rounds as it must."""
    x = np.random.default_rng(0).normal(size=(50, 2)) + 1e5
    ax = neb.plots.landscape(neb.MixtureEnergy(x, 0.5), data=x)
    assert ax.get_xlim()[0] > 1e5 - 6


def test_a_flat_landscape_has_no_levels():
    class Flat(neb.AbstractEnergy):
        sigma: jax.Array
        loc: jax.Array
        scale: jax.Array
        event_shape: tuple[int, ...] = (2,)

        def __call__(self, y):
            return 0 * y.sum() * self.scale

    energy = Flat(*map(jnp.asarray, (1.0, 0.0, 1.0)))
    ax = neb.plots.landscape(energy, ((0.0, 1.0), (0.0, 1.0)))
    assert not any(isinstance(c, ContourSet) for c in ax.collections)
    energy = Flat(*map(jnp.asarray, (1.0, 0.0, np.nan)))
    with pytest.raises(FloatingPointError, match="energy must be finite somewhere in the picture"):
        neb.plots.landscape(energy, ((0.0, 1.0), (0.0, 1.0)))


TABLE = np.random.default_rng(0).normal(size=(500, 3)) * [1, 2, 3]


def density(ax):
    """The two histograms of a panel: bins, the data's densities, the draws'."""
    data = [p for p in ax.patches if isinstance(p, Rectangle)]
    (line,) = (p for p in ax.patches if isinstance(p, Polygon))
    steps = line.get_xy()[1:-1]
    edges = np.append([p.get_x() for p in data], data[-1].get_x() + data[-1].get_width())
    return edges, [p.get_height() for p in data], steps[::2, 1]


def test_marginals_are_the_histograms_of_each_column():
    draws = TABLE[:200] * 1.5
    axes = neb.plots.marginals(TABLE, draws)
    assert axes.shape == (3,)
    for i, ax in enumerate(axes):
        edges, data, drawn = density(ax)
        assert edges[0] == pytest.approx(min(TABLE[:, i].min(), draws[:, i].min()))
        for values, found in ((TABLE, data), (draws, drawn)):
            expected, _ = np.histogram(values[:, i], edges, density=True)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
        distance = ks_2samp(TABLE[:, i], draws[:, i]).statistic
        assert ax.get_title() == f"column {i}: {distance:.2f}"
    assert axes[0].figure.get_suptitle() == ""
    _, own = plt.subplots(2, 2)
    assert neb.plots.marginals(TABLE, draws, axes=own)[2] is own[1, 0]


def test_columns_of_one_name_are_compared():
    """Whatever their order: a table's columns are known by name where both have names."""
    frame = pd.DataFrame(TABLE, columns=["a", "b", "c"])
    other = frame[["c", "a", "b"]]
    coords = {"c": ["c", "b", "a"]}
    array = xr.DataArray(TABLE[:, ::-1].reshape(5, 100, 3), coords, ("chain", "draw", "c"))
    stacked = array.stack(sample=("chain", "draw"))  # as az.extract has it: draws come last
    unnamed = xr.DataArray(TABLE.reshape(5, 100, 3), dims=("chain", "draw", "d"))
    for draws in (other, array, stacked, unnamed, unnamed.to_dataset(name="x"), TABLE):
        titles = [ax.get_title() for ax in neb.plots.marginals(frame, draws)]
        assert titles == ["a: 0.00", "b: 0.00", "c: 0.00"]
        plt.close("all")
    assert neb.plots.marginals(TABLE, array)[0].get_title().startswith("c: ")
    with pytest.raises(ValueError, match=r"columns \['a', 'b', 'c'\] of data, got \['a', 'b', 'd"):
        neb.plots.marginals(frame, frame.rename(columns={"c": "d"}))
    with pytest.raises(TypeError, match=r"must hold one variable, or x among others, got \['w"):
        neb.plots.marginals(frame, unnamed.to_dataset(name="w"))
    assert len(neb.plots.marginals(TABLE[:, 0], TABLE[:, 1])) == 1


def test_of_many_columns_those_that_differ_most_are_shown():
    data = np.random.default_rng(0).normal(size=(200, 8, 8))
    draws = data.copy()
    wrong = np.arange(24) * 2 + 5
    draws.reshape(200, 64)[:, wrong] += 1
    axes = neb.plots.marginals(data, draws)
    assert [ax.get_title().split(":")[0] for ax in axes] == [f"column {i}" for i in wrong]
    assert axes[0].figure.get_suptitle() == "the 24 of 64 columns whose marginals differ most"


def test_marginals_of_a_walk():
    energy = neb.MixtureEnergy(TABLE, 0.5)
    mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=5, num_samples=40, progress_bar=False)
    mcmc.run(jax.random.key(0))
    names = {"column": ["a", "b", "c"]}
    walk = neb.to_arviz(mcmc, names, {"x": ["column"]})
    jumps = mcmc.get_samples()["x"]
    for ax, i in zip(neb.plots.marginals(TABLE, walk), range(3), strict=True):
        distance = ks_2samp(TABLE[:, i], jumps[:, i]).statistic
        assert ax.get_title() == f"{'abc'[i]}: {distance:.2f}"


def effects(**settings):
    """Effects of which eight in ten are zero, and their standard errors."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(200) < 0.8, 0.0, 3 * rng.normal(size=200))
    sigma = rng.uniform(0.3, 1.0, 200)
    return neb.fit_mixture(x + sigma * rng.normal(size=200), sigma, **settings)


def test_shrinkage_shows_means_and_intervals():
    fit = effects(prior="scale_mixture")
    ax = neb.plots.shrinkage(fit, probability=0.8)
    order = np.argsort(fit.y)
    np.testing.assert_allclose(
        ax.collections[1].get_offsets(), np.stack([fit.y, fit.posterior_mean], 1)[order]
    )
    lines = np.array([segment[:, 1] for segment in ax.collections[0].get_segments()])
    lower, upper = fit.posterior.interval(0.8)
    np.testing.assert_allclose(lines, np.stack([lower, upper], 1)[order], rtol=1e-5)
    sizes = ax.collections[1].get_sizes()
    assert np.argmax(sizes) == np.argmin(fit.sigma[order])
    missing = neb.fit_mixture(
        np.append(fit.y, np.nan), np.append(fit.sigma, np.inf), prior="normal"
    )
    assert len(neb.plots.shrinkage(missing).collections[1].get_offsets()) == 200


def test_a_prior_shows_its_density_and_its_point_masses():
    fit = effects(prior="point_normal")
    ax = neb.plots.prior(fit)
    x, density = ax.lines[0].get_data()
    np.testing.assert_allclose(np.trapezoid(density, x), fit.weights[1], rtol=1e-2)
    masses = ax.figure.axes[1].collections[0].get_segments()
    np.testing.assert_allclose(masses, [[[0, 0], [0, fit.weights[0]]]])
    counts = neb.fit_mixture([0.0, 1.0, 1.0, 5.0], family="poisson")
    assert not neb.plots.prior(counts).lines


def test_discoveries_at_a_rate():
    fit = effects(prior="scale_mixture")
    ax = neb.plots.fdr(fit, level=0.2)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.sort(fit.q_values))
    count = fit.select(0.2).sum()
    assert ax.get_legend_handles_labels()[1] == [f"{count} at a rate of 0.2"]
