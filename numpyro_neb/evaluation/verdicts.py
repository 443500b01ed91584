"""The results of an evaluation, and its verdict in words."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from jaxtyping import Float

from numpyro_neb.evaluation.baselines import Baseline


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    r"""The results of `evaluate`; printed, a table that begins with the verdict.

    y are the noisy held-out examples, y' the ends of the chains that began there, one chain each;
    "right" below is the value for an energy whose exp(-phi) is the law of noisy data. Errors are
    standard errors.

    Attributes:
        sigma: The noise level.
        event_shape: The shape of one example; d is the number of its coordinates.
        num_pairs: n, the number of held-out examples used.
        num_steps: Steps of the walk that each chain took.
        num_diverging: How many chains became NaN or infinite. The walk is judged by the others.
        p_value: From the two-sample test of the y' against the y, exact for any number of steps.
        auc: How well a kernel classifier tells the y' from the y: 0.5 is right, 1 is worst.
        memory: The largest correlation between where a chain began and where it ended, among
            functions of the nearest prototype: 1 if no chain ever left, about
            2 sqrt((k - 1) / n) by chance, for k prototypes, if all chains forgot their start.
        r_hat: The largest split R-hat over the coordinates of y, for chains begun at the data.
        r_hat_phi: The split R-hat of phi.
        effective_draws: The smallest effective sample size over the coordinates, from the second
            half of the recorded chains: at most 64 chains of 50 draws.
        effective_draws_phi: The effective sample size of phi.
        kinetic_temperature: The mean squared velocity of a coordinate: 1, slightly less for `BAOAB`
            (1 - h^2/4 for a Gaussian of sd sigma); None for an overdamped walk.
        denoising_loss: E norm(x - x_hat(y))^2 on held-out examples, summed over the coordinates.
        denoising_loss_error: Its standard error over the examples.
        noise_loss: sigma^2 d, the loss without denoising.
        log_likelihood: The mean over the examples of log f(y) = -phi(y) - log Z, in nats.
        log_likelihood_error: The standard error of log Z.
        sampling_error: The standard error of the mean over the examples.
        log_normalizer: log Z.
        gaussian: The Gaussian, with the best linear denoiser; None if there are too many
            coordinates.
        kernel_density: The kernel density of `train`; None without it.
        phi_data: phi at the y, of shape (n,).
        phi_walk: phi at the y'.
        phi_difference: Mean phi of the y' minus that of the y, in nats: negative if the walk falls
            into holes of phi, or if phi is overfitted to its training data.
        phi_difference_error: Its standard error, pair by pair.
        prototypes: The k-means centres, of shape (k, *event_shape).
        data_shares: The share of the jumps from y that are nearest to each prototype.
        walk_shares: The same for the jumps from y'.
        share_errors: The standard errors of their differences.
        total_variation: Half the sum of the absolute differences of the shares.
        total_variation_error: Its standard error, by a bootstrap over the pairs.
        total_variation_by_chance: The value that a right energy would give.
        largest_mean_difference: Between the means of the y' and of the y, the largest over the
            coordinates, in standard errors.
        sd_ratio: The geometric mean over the coordinates of the sds of the y' over those of the y.
        sd_ratio_error: Its standard error.
        sd_ratios: The ratios by coordinate.
        stein_data: The mean of (y - E y).grad phi(y) / d on noisy data: right is 1.
        stein_data_error: Its standard error.
        stein_walk: The same on the y': 1 if the walk has the law of phi, be phi right or wrong.
        stein_walk_error: Its standard error.
        negative_variances: The share of the coordinates' posterior variances at noisy data that
            are below -sigma^2 / 100; true variances are never negative.
        marginals: The Kolmogorov-Smirnov distance by coordinate between draws of X, given the y',
            and the examples; NaN where the examples do not vary. It is large for a column with
            atoms. None for more than 256 coordinates.
        marginals_by_chance: What its mean would be for a right energy.
        correlations: The mean absolute difference between the correlations of the draws and those
            of the examples.
        correlations_by_chance: What it would be for a right energy.
        notes: Warnings, and what was left out and why.
    """

    sigma: float
    event_shape: tuple[int, ...]
    num_pairs: int
    num_steps: int
    num_diverging: int
    p_value: float
    auc: float
    memory: float
    r_hat: float
    r_hat_phi: float
    effective_draws: float
    effective_draws_phi: float
    kinetic_temperature: float | None
    denoising_loss: float
    denoising_loss_error: float
    noise_loss: float
    log_likelihood: float
    log_likelihood_error: float
    sampling_error: float
    log_normalizer: float
    gaussian: Baseline | None
    kernel_density: Baseline | None
    phi_data: Float[np.ndarray, " n"]
    phi_walk: Float[np.ndarray, " n"]
    phi_difference: float
    phi_difference_error: float
    prototypes: Float[np.ndarray, "k *event"]
    data_shares: Float[np.ndarray, " k"]
    walk_shares: Float[np.ndarray, " k"]
    share_errors: Float[np.ndarray, " k"]
    total_variation: float
    total_variation_error: float
    total_variation_by_chance: float
    largest_mean_difference: float
    sd_ratio: float
    sd_ratio_error: float
    sd_ratios: Float[np.ndarray, "*event"]
    stein_data: float
    stein_data_error: float
    stein_walk: float
    stein_walk_error: float
    negative_variances: float
    marginals: Float[np.ndarray, "*event"] | None
    marginals_by_chance: float | None
    correlations: float | None
    correlations_by_chance: float | None
    notes: tuple[str, ...]

    @property
    def bits_per_dimension(self) -> float:
        """-log2 f(y) / d, the mean over the examples: lower is better."""
        return -self.log_likelihood / (prod(self.event_shape) * np.log(2))

    @property
    def mixed(self) -> bool:
        """Whether the chains forgot where they began: memory at most 0.5 and r_hat at most 1.5."""
        return bool(self.memory <= 0.5 and self.r_hat <= 1.5)

    @property
    def outcome(self) -> Literal["right", "doubtful", "untested", "wrong"]:
        """The verdict in a word.

        "wrong": a chain diverges, p_value < 0.01, the sds of y are off by 5% and 5 standard errors,
        or the Gaussian or the kernel density denoises better, by 5% and 4 standard errors, or is
        the better density, by 0.1 nats and 4 standard errors. Else "untested" if the chains do not
        forget where they began, memory > 0.5 or r_hat > 1.5, or took too few steps to tell. Else
        "doubtful" if p_value < 0.05, otherwise "right", as far as n examples can tell.
        """
        width = abs(np.log(self.sd_ratio)) if self.sd_ratio > 0 else 0
        off = width > max(0.05, 5 * self.sd_ratio_error / max(self.sd_ratio, 1e-30))
        if self.num_diverging or self.p_value < 0.01 or off or _beaten(self):
            return "wrong"
        if not self.mixed:
            return "untested"
        return "doubtful" if self.p_value < 0.05 else "right"

    @property
    def verdict(self) -> str:
        """Whether the energy is right, and how it is wrong, in a few sentences."""
        told = f"p = {self.p_value:.2g}, AUC {self.auc:.2f}"
        opening = {
            "right": f"RIGHT, as far as {self.num_pairs:,} held-out examples can tell: the walk's y"
            f" cannot be told from noisy data ({told})"
            + ". So few see only large errors"
            * (self.num_pairs < 100),
            "doubtful": f"DOUBTFUL: a right energy gives such a p-value one time in"
            f" {round(1 / max(np.nan_to_num(self.p_value), 0.01))} ({told}). Try another key, or"
            " more data",
            "untested": f"UNTESTED: in {self.num_steps:,} steps",
            "wrong": "WRONG",
        }[self.outcome]
        sentences = [opening]
        if self.outcome == "wrong" and self.p_value < 0.01:
            sentences = [f"WRONG: the walk's y can be told from noisy data ({told})"]
        if self.outcome in ("wrong", "doubtful"):
            sentences += _how(self)
            sentences += [_TO_DO] * (self.p_value < 0.05)
        if self.outcome == "right" and (asides := list(_asides(self))):
            listed = ", ".join(asides)
            sentences.append(f"Off by 3 standard errors or more, which does not decide: {listed}")
        if self.outcome == "untested":
            sentences = [f"{opening} {_stuck(self)}"]
        elif not self.mixed:
            sentences.append(f"Besides, in {self.num_steps:,} steps {_stuck(self)}")
        return ". ".join(sentences) + "."

    def __str__(self) -> str:
        rows = [row for row in _rows(self) if row is not None]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]
        notes = [line for note in self.notes for line in _wrapped(note)]
        return "\n".join([*_wrapped(self.verdict), "", *lines, *notes])

    __repr__ = __str__


def _beaten(e):
    return any(_denoises_better(b) or _denser(b) for b in (e.gaussian, e.kernel_density))


def _denoises_better(baseline):
    if baseline is None:
        return False
    gain, error = baseline.denoising_gain, baseline.denoising_gain_error
    return gain < -max(4 * error, 0.05 * baseline.denoising_loss)


def _denser(baseline):
    if baseline is None:
        return False
    return baseline.log_likelihood_gain < -max(4 * baseline.log_likelihood_gain_error, 0.1)


_TO_DO = (
    "To do: a second stage of training, objective=MaximumLikelihood(), if there was none, or more"
    " steps of both. And see that the held-out examples are a random part of the same data: files"
    " are often sorted"
)


def _asides(e):
    """What is off although the walk passes."""
    if abs(e.sd_ratio - 1) > max(0.02, 3 * e.sd_ratio_error):
        yield f"sds of y {e.sd_ratio:.2f} times the data's"
    if abs(e.phi_difference) > 3 * e.phi_difference_error:
        yield f"mean phi {e.phi_difference:+.2g} nats"
    if abs(e.stein_data - 1) > max(0.05, 3 * e.stein_data_error):
        yield f"Stein ratio of the data {e.stein_data:.2f}"


def _place(e, i):
    """The prototype's number, and its place if it has at most 3 coordinates."""
    place = np.ravel(e.prototypes[i])
    return f"prototype {i}" + f", near {np.round(place, 2).tolist()}," * (len(place) <= 3)


def _stuck(e):
    return (
        f"the chains do not get from mode to mode (R-hat {e.r_hat:.2f}, memory {e.memory:.2f}), so"
        " that the weights of the modes are untested: other weights would have passed as well. Take"
        " more steps; modes that are never crossed can be weighed with several noise levels only"
    )


def _how(e):
    """How an energy is wrong, most serious first."""
    if e.num_diverging:
        yield (
            f"{e.num_diverging:,} of {e.num_pairs:,} chains became NaN or infinite: the walk needs"
            " a smaller step, or phi a bound far from the data"
        )
    over = np.argsort((e.walk_shares - e.data_shares) / np.maximum(e.share_errors, 1e-12))
    for i, word, more, less in (
        (over[-1], "often", e.walk_shares, e.data_shares),
        (over[0], "seldom", e.data_shares, e.walk_shares),
    ):
        if more[i] - less[i] > 3 * e.share_errors[i]:
            times = f"{more[i] / less[i]:.1f} times too {word}" if less[i] > 0 else f"too {word}"
            pair = f"{e.walk_shares[i]:.1%} of its jumps, {e.data_shares[i]:.1%} of the data's"
            yield f"The walk visits {_place(e, i)} {times} ({pair})"
    if abs(e.sd_ratio - 1) > max(0.02, 3 * e.sd_ratio_error):
        word = "narrower" if e.sd_ratio < 1 else "wider"
        yield f"The walk is {abs(e.sd_ratio - 1):.0%} {word} than the data (sds of y by coordinate)"
    if abs(e.phi_difference) > 3 * e.phi_difference_error:
        word = "below" if e.phi_difference < 0 else "above"
        yield f"The walk's phi lies {abs(e.phi_difference):.3g} nats {word} that of the data"
    for baseline, denoiser, density in (
        (e.gaussian, "the best linear denoiser", "a Gaussian"),
        (e.kernel_density, "the kernel density", "the kernel density"),
    ):
        if _denoises_better(baseline):
            yield (
                f"The energy denoises worse than {denoiser} ({e.denoising_loss:.4g} for"
                f" {baseline.denoising_loss:.4g})"
            )
        if _denser(baseline):
            gain = -baseline.log_likelihood_gain
            yield f"The energy is the worse density of the data than {density}, by {gain:.3g} nats"
    if abs(e.stein_data - 1) > max(0.05, 4 * e.stein_data_error):
        yield f"The Stein ratio on the data is {e.stein_data:.2f} in place of 1"
    if e.negative_variances > 0.01:
        yield f"{e.negative_variances:.0%} of its posterior variances are negative"


def _rows(e):
    """The table's rows: a name, its value, and what would be right."""
    d = prod(e.event_shape)
    yield "", "measured", "if right"
    yield "THE WALK against noisy data", "", ""
    yield f"two-sample test, {e.num_pairs:,} pairs: p", f"{e.p_value:.3g}", "above 0.05"
    yield "AUC of a kernel classifier", f"{e.auc:.3f}", "0.5"
    chance = f"{e.total_variation_by_chance:.3f} by chance"
    value = _with(e.total_variation, e.total_variation_error)
    yield f"total variation of {len(e.data_shares)} prototypes", value, chance
    yield "sds of y, walk / data", _with(e.sd_ratio, e.sd_ratio_error), "1"
    yield "  by coordinate", f"{e.sd_ratios.min():.2f} to {e.sd_ratios.max():.2f}", "about 1"
    typical = np.sqrt(2 * np.log(2 * d)) if d > 1 else 1.0
    mean = f"{e.largest_mean_difference:.1f} se"
    yield "means of y, largest difference", mean, f"about {typical:.1f} se"
    phi = _with(e.phi_difference, e.phi_difference_error)
    yield "mean phi, walk - data (nats)", phi, "0"
    yield "chains that diverged", f"{e.num_diverging:,}", "0"
    yield f"memory after {e.num_steps:,} steps", f"{e.memory:.2f}", "below 0.5, to test"
    yield "R-hat of y, of phi", f"{e.r_hat:.2f}, {e.r_hat_phi:.2f}", "below 1.5, to test"
    draws = f"{e.effective_draws:,.0f}, {e.effective_draws_phi:,.0f}"
    yield "effective draws of y, of phi", draws, "many"
    yield "Stein ratio of the walk", _with(e.stein_walk, e.stein_walk_error), "1"
    if e.kinetic_temperature is not None:
        yield "kinetic temperature", f"{e.kinetic_temperature:.3f}", "1 (BAOAB: 0.75 to 1)"
    yield "THE ENERGY at noisy data", "", ""
    yield "denoising loss", _with(e.denoising_loss, e.denoising_loss_error), "below the next rows"
    yield "  of no denoising, sigma^2 d", f"{e.noise_loss:.4g}", ""
    names = (("the best linear denoiser", "a Gaussian"), ("the kernel density",) * 2)
    pairs = list(zip((e.gaussian, e.kernel_density), names, strict=True))
    for baseline, (name, _) in pairs:
        if baseline is not None:
            yield f"  of {name}", f"{baseline.denoising_loss:.4g}", ""
    value = _with(e.log_likelihood, e.log_likelihood_error)
    yield "log-likelihood, log f(y) (nats)", value, "above the next rows"
    yield "  over the examples", f"-+ {e.sampling_error:.2g}", ""
    for baseline, (_, name) in pairs:
        if baseline is not None:
            yield f"  of {name}", f"{baseline.log_likelihood:.4g}", ""
    yield "  bits per dimension", f"{e.bits_per_dimension:.4f}", "low"
    yield "Stein ratio of the data", _with(e.stein_data, e.stein_data_error), "1"
    yield "negative posterior variances", f"{e.negative_variances:.1%}", "0%"
    if e.marginals is not None:
        yield "DRAWS OF X against the examples", "", ""
        known = e.marginals[np.isfinite(e.marginals)]
        right = f"about {e.marginals_by_chance:.3f}"
        yield "Kolmogorov-Smirnov by column, mean", f"{known.mean():.3f}", right
        yield "  the worst", f"{known.max():.3f}", ""
    if e.correlations is not None:
        right = f"about {e.correlations_by_chance:.3f}"
        yield "correlations, mean difference", f"{e.correlations:.3f}", right


def _with(value, error):
    return f"{value:.4g} -+ {error:.2g}"


def _wrapped(text):
    from textwrap import wrap

    return wrap(text, 80)
