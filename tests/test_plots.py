import matplotlib.pyplot as plt
import numpy as np
import pytest

import numpyro_neb as neb

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


def test_bad_arguments(untyped):
    with pytest.raises(ValueError, match=r"noisy must have shape \(n, height, width\), got \(4,\)"):
        neb.plots.denoising(IMAGES, np.zeros(4), IMAGES)
    with pytest.raises(ValueError, match=r"x must have shape \(chains, draws, height, width\)"):
        neb.plots.walk_jump(IMAGES)
