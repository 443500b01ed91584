"""`evaluate` on exact mixtures, whose right and wrong energies are known."""

import dataclasses
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from targets import STANDARD_ERRORS, Wrapped, gaussian, within

import numpyro_neb as neb
from numpyro_neb import cli as command_line
from numpyro_neb.evaluation import measurement
from numpyro_neb.evaluation.baselines import Judged, Look, baselines
from numpyro_neb.evaluation.prototypes import shares
from numpyro_neb.evaluation.two_sample import paired_test

KEY = jax.random.key(0)
QUICK = {"progress_bar": False, "num_temperatures": 100, "num_particles": 200, "num_steps": 200}


class Lifted(Wrapped):
    """Five nats above a normalised energy, so that log Z = -5."""

    def __init__(self, *args):
        super().__init__(neb.MixtureEnergy(*args), five_more)

    def posterior(self, y):
        return self.inner.posterior(y)


def five_more(y, phi):
    return phi(y) + 5


def two_modes(distance, share):
    """Modes so many standard deviations of Y apart; the second one holds that share."""
    locs = jnp.array([[0.0, 0.0], [distance, 0.0]])
    return Lifted(locs, 1.0, jnp.log(jnp.array([1 - share, share])))


def clean(distance, share, n, seed=0):
    second = np.random.default_rng(seed).random((n, 1)) < share
    return (second * np.array([distance, 0.0])).astype(np.float32)


@pytest.fixture(scope="module")
def right():
    x = clean(3.5, 0.2, 300)
    return neb.evaluate(two_modes(3.5, 0.2), x, key=KEY, train=clean(3.5, 0.2, 500, 1), **QUICK)


@pytest.fixture(scope="module")
def wrong():
    x = clean(3.5, 0.2, 300)
    return neb.evaluate(two_modes(3.5, 0.5), x, key=KEY, **QUICK)


@pytest.mark.statistical
def test_a_right_energy_is_called_right(right):
    assert right.outcome == "right"
    assert right.verdict.startswith("RIGHT, as far as 300 held-out examples can tell")
    assert right.p_value > 0.05
    assert right.num_diverging == 0
    # By the definition of the law; all in their own standard errors.
    within(right.stein_data, 1, right.stein_data_error)
    within(right.stein_walk, 1, right.stein_walk_error)
    within(right.sd_ratio, 1, right.sd_ratio_error)
    within(right.phi_difference, 0, right.phi_difference_error)
    # BAOAB's velocities are between 1 - h^2 / 4 and 1.
    assert 0.75 < right.kinetic_temperature < 1
    assert right.r_hat < 1.2
    assert right.negative_variances == 0


@pytest.mark.statistical
def test_log_likelihood_and_loss_against_the_formulas(right):
    truth = two_modes(3.5, 0.2)
    # Minus the entropy of Y, and the Bayes error, over a million draws of y.
    y = truth.inner.sample(jax.random.key(7), (200_000,))
    log_f = 5 - np.asarray(jax.vmap(truth)(y), float)
    within(right.log_likelihood, log_f.mean(), right.sampling_error)
    assert right.sampling_error < 0.05
    within(right.log_normalizer, -5, right.log_likelihood_error)
    np.testing.assert_allclose(right.bits_per_dimension, -right.log_likelihood / 2 / np.log(2))
    # X is one of two points: Var(X given y) = distance^2 p (1 - p).
    responsibilities = lambda y: truth.inner.components.log_responsibilities(y, truth.sigma)  # noqa: E731
    p = np.exp(np.asarray(jax.vmap(responsibilities)(y), float))[:, 1]
    within(right.denoising_loss, np.mean(3.5**2 * p * (1 - p)), right.denoising_loss_error)
    assert right.noise_loss == 2
    # The best line: x_1 has the variance v = 3.5^2 * .2 * .8, x_2 none.
    v = 3.5**2 * 0.16
    assert right.gaussian.denoising_loss == pytest.approx(v / (v + 1), rel=0.1)
    gaussian_entropy = (2 * np.log(2 * np.pi) + np.log(v + 1) + 2) / 2
    assert right.gaussian.log_likelihood == pytest.approx(-gaussian_entropy, abs=0.1)
    # The kernel density of 500 points on two places is nearly the truth.
    assert abs(right.kernel_density.log_likelihood_gain) < 0.02
    assert right.gaussian.log_likelihood_gain == pytest.approx(
        right.log_likelihood - right.gaussian.log_likelihood
    )


def test_wrong_weights_are_called_wrong_and_named(wrong):
    assert wrong.outcome == "wrong"
    assert wrong.p_value <= 0.01
    assert wrong.auc > 0.55
    first = int(np.argmin(wrong.prototypes[:, 0]))
    second = 1 - first
    assert wrong.walk_shares[second] > 2 * wrong.data_shares[second]
    times = wrong.walk_shares[second] / wrong.data_shares[second]
    near = np.round(wrong.prototypes[second], 2).tolist()
    named = f"prototype {second}, near {near}, {times:.1f} times too often"
    assert f"The walk visits {named}" in wrong.verdict
    assert "objective=MaximumLikelihood()" in wrong.verdict
    assert f"The walk visits prototype {first}" in wrong.verdict
    assert "too seldom" in wrong.verdict
    # Of .2 and .8 against .5 and .5, some of the jumps on the wrong side.
    within(wrong.total_variation, 0.3, wrong.total_variation_error)
    assert wrong.total_variation_by_chance < 0.06
    np.testing.assert_allclose([wrong.data_shares.sum(), wrong.walk_shares.sum()], 1)


def test_cross_fitted_without_train(wrong, right):
    assert wrong.kernel_density is None
    assert wrong.gaussian.denoising_loss == pytest.approx(right.gaussian.denoising_loss, rel=0.2)


def test_nobody_is_judged_on_what_it_was_fitted_to():
    """X ~ N(0, I): the best loss is d / 2; of 20 points fitted to themselves it would be less."""
    x = np.random.default_rng(0).normal(size=(40, 20))
    noisy = (x + np.random.default_rng(1).normal(size=(5, 40, 20))).astype(np.float32)
    unknown = np.zeros((5, 40))
    judged = Judged(x, noisy, unknown, unknown, 0.0)
    found = baselines(judged, 1.0, None, Look(200, False), [])
    assert found["gaussian"].denoising_loss > 10
    assert found["kernel_density"] is None


def test_the_printed_table_says_it_first(right, wrong):
    text = str(wrong)
    assert text.startswith("WRONG: the walk's y can be told from noisy data (p = 0.001, AUC 0.")
    assert repr(wrong) == text
    # Also with the longest numbers and a long note.
    huge = dataclasses.replace(
        wrong, log_likelihood=-1.234e15, log_likelihood_error=1.2e10, num_pairs=100_000,
        phi_difference=-1.234e15, phi_difference_error=1.2e10, num_steps=10_000_000,
        effective_draws=1e7, effective_draws_phi=1e7, event_shape=(1000, 1000),
        notes=("a b " * 60,),
    )  # fmt: skip
    for printed in (text, str(right), str(huge)):
        assert max(map(len, printed.split("\n"))) <= 80
    for label in ("two-sample test, 300 pairs: p", "log-likelihood", "denoising loss", "R-hat"):
        assert label in text
    assert "kernel density" in str(right)
    assert f"{right.log_likelihood:.4g} -+ {right.log_likelihood_error:.2g}" in str(right)


def test_every_long_part_has_a_bar(monkeypatch):
    """Steps of the walk, and draws of X: each takes d products of one event."""
    shown = {}
    real = measurement.tqdm

    def bar(*args, desc, disable, **kwargs):
        shown[desc] = not disable, len(args[0]) if args else kwargs["total"]
        return real(*args, desc=desc, disable=True, **kwargs)

    monkeypatch.setattr(measurement, "tqdm", bar)
    x = np.random.default_rng(0).normal(size=(60, 65))
    settings = QUICK | {"num_steps": 20, "progress_bar": True}
    neb.evaluate(gaussian(np.ones(65), 0.5), x, key=KEY, **settings)
    # At most 20 draws in each part of the bar.
    assert shown == {"walk": (True, 20), "draws of X": (True, 3)}


def test_modes_that_the_chains_do_not_cross_are_never_called_right():
    x = clean(8.0, 0.2, 300)
    found = neb.evaluate(two_modes(8.0, 0.5), x, key=KEY, **QUICK)
    assert found.p_value > 0.01
    assert found.r_hat > 2
    assert found.memory > 0.9
    assert found.outcome == "untested"
    assert "the weights of the modes are untested" in found.verdict


@pytest.mark.statistical
def test_a_narrow_energy_and_what_it_lacks():
    x = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    found = neb.evaluate(gaussian([0.2] * 2, 0.5), x, key=KEY, **QUICK)
    # sqrt(.2^2 + .5^2) / sqrt(1 + .5^2) = .48.
    within(found.sd_ratio, 0.4817, found.sd_ratio_error)
    assert found.sd_ratio_error < 0.03
    assert found.noise_loss == 0.5
    assert found.outcome == "wrong"
    assert "% narrower than the data" in found.verdict
    assert "The energy denoises worse than the best linear denoiser" in found.verdict
    assert "The energy is the worse density of the data than a Gaussian" in found.verdict
    # E y^2 / (.2^2 + .5^2) = 1.25 / .29.
    within(found.stein_data, 1.25 / 0.29, found.stein_data_error)
    within(found.stein_walk, 1, found.stein_walk_error)
    assert found.marginals.min() > 2.5 * found.marginals_by_chance


@pytest.mark.statistical
def test_a_column_of_the_table_that_is_wrong():
    """Correlated data, an energy that does not know it: marginals right, correlations not."""
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 300).astype(np.float32)
    found = neb.evaluate(gaussian([1.0, 1.0], 0.5), x, key=KEY, **QUICK)
    assert found.marginals.shape == (2,)
    assert np.all(found.marginals < 3 * found.marginals_by_chance)
    assert found.correlations > 0.5
    assert found.correlations_by_chance < 0.2


def steep(y, phi):
    """Right at the data, and too steep for any step beyond."""
    return phi(y) + 1e3 * jnp.sum(jnp.maximum(jnp.abs(y) - 3, 0) ** 4)


@pytest.mark.statistical
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_walk_that_diverges_is_counted(shift):
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32) + shift
    energy = Wrapped(neb.MixtureEnergy(x, 0.5), steep)
    found = neb.evaluate(energy, x, key=KEY, **QUICK)
    assert found.num_diverging > 0
    assert found.outcome == "wrong"
    assert f"{found.num_diverging} of 40 chains became NaN or infinite" in found.verdict
    assert "chains that diverged" in str(found)


def test_negative_variances_are_counted():
    def ripples(y, phi):  # Hess phi is above 1 / sigma^2 where the cosine is below zero
        return phi(y) + jnp.sum(jnp.cos(40 * y))

    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    energy = neb.MixtureEnergy(jnp.zeros((1, 2)), 0.5, covariances=jnp.eye(2)[None])
    share = measurement._negative_share(Wrapped(energy, ripples), x, KEY)
    assert 0.3 < share < 0.7
    assert measurement._negative_share(energy, x, KEY) == 0


def test_a_log_z_that_is_not_to_be_trusted_says_so(monkeypatch):
    def untrusted(*args, **kwargs):
        warnings.warn("the standard error 3 is unreliable", stacklevel=1)
        return neb.empirical_bayes.log_normalizer(*args, **kwargs)

    monkeypatch.setattr(measurement, "log_normalizer", untrusted)
    found = neb.evaluate(two_modes(3.5, 0.2), clean(3.5, 0.2, 300), key=KEY, **QUICK)
    assert found.notes == ("log Z: the standard error 3 is unreliable",)
    assert str(found).endswith(found.notes[0])

    def infinite(*args, **kwargs):
        raise FloatingPointError("phi is NaN at 3 of 200 particles")

    monkeypatch.setattr(measurement, "log_normalizer", infinite)
    found = neb.evaluate(two_modes(3.5, 0.2), clean(3.5, 0.2, 300), key=KEY, **QUICK)
    assert np.isnan(found.log_likelihood)
    assert "log Z is not known: phi is NaN" in str(found)
    assert found.outcome == "right"


@pytest.mark.slow
def test_other_integrators_and_event_shapes():
    x = clean(3.5, 0.2, 60)[:, :1].reshape(-1, 1, 1)
    energy = neb.MixtureEnergy(jnp.array([[[0.0]], [[3.5]]]), 1.0, jnp.log(jnp.array([0.8, 0.2])))
    for integrator in (neb.integrators.MALA(), neb.integrators.ABOBA()):
        settings = QUICK | {"integrator": integrator, "chunk_size": 25, "num_steps": 103}
        found = neb.evaluate(energy, x, key=KEY, **settings)
        assert found.outcome != "wrong"
        assert found.prototypes.shape == (2, 1, 1)
        assert found.sd_ratios.shape == (1, 1)
    assert found.kinetic_temperature > 1  # ABOBA's
    line = neb.MixtureEnergy(jnp.array([0.0, 3.5]), 1.0, jnp.log(jnp.array([0.8, 0.2])))
    found = neb.evaluate(line, x.ravel(), key=KEY, **QUICK)
    assert found.outcome == "right"
    assert found.correlations is None


def test_only_chosen_rows_of_a_file_are_read(tmp_path):
    x = clean(3.5, 0.2, 1000)
    np.save(tmp_path / "x.npy", x)
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    settings = QUICK | {"key": KEY, "num_pairs": 300}
    one, other = (neb.evaluate(two_modes(3.5, 0.2), data, **settings) for data in (on_disk, x))
    assert one.num_pairs == 300
    assert str(one) == str(other)
    # A NaN in a row that is not chosen is not seen.
    chosen = measurement._chosen("held_out", x, (2,), 300, np.random.default_rng(0))
    x[np.flatnonzero(~np.isin(np.arange(1000), _rows(1000, 300)))] = np.nan
    np.testing.assert_array_equal(
        measurement._chosen("held_out", x, (2,), 300, np.random.default_rng(0)), chosen
    )


def _rows(n, most):
    return np.random.default_rng(0).permutation(n)[:most]


def test_a_high_dimension_is_not_drawn_and_says_so():
    notes = []
    walked = SimpleNamespace(finite=np.ones(30, bool))
    x = np.zeros((30, 300), np.float32)
    found = measurement._of_columns(gaussian(np.ones(300), 0.5), x, walked, KEY, None, notes, False)
    assert set(found.values()) == {None}
    assert notes == [
        "X was not drawn, nor its marginals compared: an event of 300 coordinates is too large"
    ]


def test_the_order_of_the_examples_does_not_matter():
    """Of a file sorted by mode the first rows are one mode alone."""
    x = np.repeat([[0.0], [4.0]], 300, axis=0)
    rng = np.random.default_rng(0)
    for count in (600, 100):
        chosen = measurement._chosen("x", x, (1,), count, rng)
        assert len(chosen) == count
        # Hypergeometric; five standard errors are less than the half of them.
        assert 0.25 < np.mean(chosen[: count // 2] > 2) < 0.75


def test_held_out_examples_that_are_in_train_are_counted():
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    assert measurement._seen_before(x[:20], x[20:]) == []
    (note,) = measurement._seen_before(x[:20], x[15:].astype(float))
    assert note.startswith("5 of the 20 held-out examples are in train as well")


def test_one_prototype():
    jumps = np.zeros((30, 2))
    found = shares(jumps, jumps, np.zeros((1, 2)), np.random.default_rng(0))
    assert found["memory"] == 0


def outcome_of(found, **fields):
    return dataclasses.replace(found, **fields).outcome


def test_the_rules_of_the_verdict(right):
    assert outcome_of(right, p_value=0.03) == "doubtful"
    assert outcome_of(right, p_value=0.009) == "wrong"
    assert "does not decide" not in right.verdict
    off = dataclasses.replace(right, stein_data=1.3, stein_data_error=0.01)
    assert off.outcome == "right"
    assert "which does not decide: Stein ratio of the data 1.30" in off.verdict
    assert outcome_of(right, r_hat=1.6) == "untested"
    assert outcome_of(right, memory=0.6) == "untested"
    assert outcome_of(right, r_hat=np.nan) == "untested"  # too few steps for one
    assert outcome_of(right, r_hat=1.6, p_value=0.009) == "wrong"
    assert "Besides" in dataclasses.replace(right, r_hat=1.6, p_value=0.009).verdict
    assert outcome_of(right, num_diverging=1) == "wrong"
    assert outcome_of(right, sd_ratio=0.9, sd_ratio_error=0.01) == "wrong"
    assert outcome_of(right, sd_ratio=0.97, sd_ratio_error=0.001) == "right"
    assert outcome_of(right, sd_ratio=0.9, sd_ratio_error=0.03) == "right"
    worse = right.gaussian._replace(denoising_gain=-0.1, denoising_gain_error=0.01)
    assert outcome_of(right, gaussian=worse) == "wrong"
    near = right.gaussian._replace(log_likelihood_gain=-0.09, log_likelihood_gain_error=0.01)
    assert dataclasses.replace(right, gaussian=near).outcome == right.outcome
    worse = right.gaussian._replace(log_likelihood_gain=-0.11, log_likelihood_gain_error=0.01)
    assert outcome_of(right, kernel_density=worse) == "wrong"


# The two-sample test by itself.


def p_values(shift, repeats, seed=0):
    """Of pairs that are correlated within; the second points lie higher by `shift`."""
    rng, found = np.random.default_rng(seed), []
    for i in range(repeats):
        a = rng.normal(size=(40, 2))
        b = 0.9 * a + np.sqrt(1 - 0.9**2) * rng.normal(size=(40, 2))
        b[:, 0] += shift
        features = [{"y": x, "cube": x**3} for x in (a, b)]
        found.append(paired_test(*features, num_swaps=99, seed=i))
    return np.array(found)


def test_the_size_of_the_test_is_exact_whatever_the_correlation():
    p, auc = p_values(0.0, 400).T
    for level in (0.05, 0.2, 0.5):
        # Above 5 standard errors of a binomial share with that mean.
        assert np.mean(p <= level) < level + STANDARD_ERRORS * np.sqrt(level * (1 - level) / 400)
        assert np.mean(p <= level) > level - STANDARD_ERRORS * np.sqrt(level * (1 - level) / 400)
    within(auc.mean(), 0.5, auc.std() / np.sqrt(400))
    assert p.min() >= 0.01


def test_its_power_uses_the_pairs():
    """A shift of half a standard deviation, in 40 pairs: five times what their differences need."""
    p, auc = p_values(0.5, 50).T
    assert np.mean(p <= 0.05) > 0.9
    assert auc.mean() > 0.55


def test_the_smallest_p_value_counts_the_data_itself():
    a = np.random.default_rng(0).normal(size=(50, 1))
    found = paired_test({"y": a}, {"y": a + 10}, num_swaps=99, seed=0)
    assert found.p_value == 0.01
    assert found.auc == 1
    assert paired_test({"y": a}, {"y": a}, num_swaps=99, seed=0) == (1, 0.5)


def rejections(share, repeats, n):
    """How often p <= 0.05, of data whose second mode has 0.2; short walks, in new data each."""
    energy, rejected = two_modes(3.5, share), 0
    settings = {"progress_bar": False, "num_temperatures": 2, "num_particles": 20}
    for i in range(repeats):
        found = neb.evaluate(
            energy, clean(3.5, 0.2, n, i), key=jax.random.key(i), num_steps=100, **settings
        )
        rejected += found.p_value <= 0.05
    return rejected


@pytest.mark.slow
@pytest.mark.statistical
def test_size_over_repeats():
    repeats = 200
    rejected = rejections(0.2, repeats, 60)
    assert rejected <= stats.binom.isf(stats.norm.sf(STANDARD_ERRORS), repeats, 0.05)


@pytest.mark.slow
@pytest.mark.statistical
def test_power_over_repeats():
    # With a power of .99 or more, fewer than 36 of 40 come up once in 10,000 times.
    assert rejections(0.5, 40, 300) >= 40 * 0.9


@pytest.mark.slow
@pytest.mark.statistical
def test_far_modes_with_wrong_weights_are_not_called_right():
    found = neb.evaluate(two_modes(5.8, 0.5), clean(5.8, 0.2, 300), key=KEY)
    assert found.outcome in ("untested", "wrong")


def test_what_is_too_little():
    energy = gaussian([1.0, 1.0], 0.5)
    with pytest.raises(ValueError, match="held_out must hold at least 20 examples, got 19"):
        neb.evaluate(energy, np.zeros((19, 2), np.float32), key=KEY)


def test_the_picture(right):
    axes = neb.plots.evaluation(right)
    assert [bar.get_height() for bar in axes[1].patches] == pytest.approx(
        [*right.data_shares, *right.walk_shares]
    )
    assert axes[0].get_title("left") == f"right: p = {right.p_value:.2g}"
    np.testing.assert_allclose(axes[2].lines[1].get_ydata(), right.sd_ratios)
    image = dataclasses.replace(
        right,
        event_shape=(1, 2),
        prototypes=right.prototypes[:, None],
        sd_ratios=right.sd_ratios[None],
        marginals=right.marginals[None],
    )
    assert neb.plots.evaluation(image, axes=axes) is not None
    assert len(axes[1].child_axes) == 2
    np.testing.assert_allclose(axes[2].images[0].get_array(), image.sd_ratios)


def test_the_command(right, tmp_path, monkeypatch, capsys):
    asked = {}

    def found(energy, held_out, **settings):
        asked.update(settings, energy=energy, held_out=held_out)
        return right

    monkeypatch.setattr(neb, "evaluate", found)
    names = [tmp_path / name for name in ("energy", "held_out.npy", "train.npy", "found.png")]
    energy = neb.MixtureEnergy(jnp.zeros((1, 2)), 1.0)
    neb.save(names[0], energy)
    np.save(names[1], clean(3.5, 0.2, 30))
    np.save(names[2], clean(3.5, 0.2, 40))
    arguments = ["evaluate", *names[:2], "--train", names[2], "--out", names[3], "--num-steps", 50]
    assert command_line.main([*map(str, arguments), "--pairs", "25", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{right}\nwritten: {names[3]}\n"
    assert names[3].stat().st_size > 1000
    assert (asked["num_steps"], asked["num_pairs"]) == (50, 25)
    assert asked["key"] == jax.random.key(3)
    assert [len(asked[name]) for name in ("held_out", "train")] == [30, 40]
    assert asked["energy"].event_shape == (2,)


@pytest.mark.slow
def test_the_command_as_it_is(tmp_path, capsys):
    neb.save(tmp_path / "energy", neb.MixtureEnergy(jnp.zeros((1, 2)), 1.0))
    np.save(tmp_path / "x.npy", clean(3.5, 0.2, 100))
    arguments = ["evaluate", str(tmp_path / "energy"), str(tmp_path / "x.npy")]
    assert command_line.main([*arguments, "--num-steps", "100"]) == 0
    assert capsys.readouterr().out.startswith("WRONG")
    assert command_line.main([*arguments[:2], str(tmp_path / "none.npy")]) == 1
    assert "there is no file" in capsys.readouterr().err
