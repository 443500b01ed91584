import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.quiver import Quiver

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
    return FoundMemories(IMAGES, np.zeros(4), np.array([True, True, True, stable]), counts, basins)


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
    none = FoundMemories(IMAGES[:0], *(np.zeros(0, int),) * 4)
    with pytest.raises(ValueError, match="found must hold at least one memory, got none"):
        neb.plots.memories(none)
    limits = ((-1.0, 1.0), (-1.0, 1.0))
    with pytest.raises(ValueError, match=r"energy must have the event shape \(2,\), got \(3,\)"):
        neb.plots.landscape(neb.MixtureEnergy(np.eye(3), 0.5), limits)
    with pytest.raises(ValueError, match=r"walk must have shape \(draws, 2\), got \(4,\)"):
        neb.plots.landscape(neb.MixtureEnergy(np.eye(2), 0.5), limits, walk=np.zeros(4))
    with pytest.raises(TypeError, match=r"energy must be a numpyro_neb\.AbstractEnergy"):
        neb.plots.landscape(None, limits)
