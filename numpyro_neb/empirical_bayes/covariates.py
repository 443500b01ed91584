"""A prior that depends on covariates and on sigma, learned by a network."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb.energies.base import AbstractEnergy, NonTrainable
from numpyro_neb.training.fitting import fit


class ConditionalPrior(eqx.Module):
    """A mixture of normal laws whose means, widths and weights a network computes from covariates.

    Attributes:
        network: From the covariates and sigma, standardised, to 3 K numbers.
        grid: Where the means are before the network moves them.
    """

    network: eqx.nn.MLP
    grid: NonTrainable

    def __init__(self, num_covariates: int, key: PRNGKeyArray):
        count = _NUM_COMPONENTS
        self.network = eqx.nn.MLP(
            num_covariates + 1, 3 * count, _WIDTH, 2, activation=jax.nn.silu, key=key
        )
        self.grid = NonTrainable(jnp.linspace(-2, 2, count))

    def __call__(
        self, x: Float[Array, " p"]
    ) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, " K"]]:
        """The means, standard deviations and log weights."""
        means, widths, logits = jnp.split(self.network(x), 3)
        return self.grid.value + means, jax.nn.softplus(widths - 1), jax.nn.log_softmax(logits)


class _RowEnergy(AbstractEnergy):
    """-log f(y | sigma, covariates) of one row (y, sigma, covariates and sigma standardised)."""

    prior: ConditionalPrior
    sigma: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    loc: Float[Array, ""]
    scale: Float[Array, ""]

    def __init__(self, prior: ConditionalPrior, size: int):
        self.prior, self.event_shape = prior, (size,)
        self.sigma, self.loc, self.scale = jnp.ones(()), jnp.zeros(()), jnp.ones(())

    def __call__(self, row: Float[Array, " size"]) -> Float[Array, ""]:
        """Minus the log density of its y."""
        y, sigma, x = row[0], row[1], row[2:]
        means, deviations, log_weights = self.prior(x)
        variances = deviations**2 + sigma**2
        logs = -((y - means) ** 2) / (2 * variances) - jnp.log(variances) / 2
        return -jax.nn.logsumexp(log_weights + logs)


def unbiased_risk(
    energy: AbstractEnergy, rows: Float[Array, "batch size"], key: PRNGKeyArray
) -> Float[Array, ""]:
    """Stein's estimate of the mean squared error of E[X given y], one sigma for each row.

    It is sigma^2 + sigma^4 s(y)^2 + 2 sigma^4 s'(y), with s the derivative of log f.
    """
    del key

    def one(row):
        along = jnp.zeros_like(row).at[0].set(1)
        slope = lambda row: -jax.grad(energy)(row)[0]  # noqa: E731
        score, change = jax.jvp(slope, (row,), (along,))
        return row[1] ** 2 + row[1] ** 4 * (score**2 + 2 * change)

    return jnp.mean(jax.vmap(one)(rows))


@dataclass(frozen=True, eq=False)
class CovariatePrior:
    """The law of X given covariates and sigma, in the data's units.

    Attributes:
        law: The network.
        centre: The means of the columns: y, then the covariates and sigma.
        spread: Their standard deviations.
    """

    law: ConditionalPrior
    centre: Float[np.ndarray, " q"]
    spread: Float[np.ndarray, " q"]

    def __call__(
        self, covariates: Float[np.ndarray, "n p"], sigma: Float[np.ndarray, " n"]
    ) -> tuple[Any, Any, Any]:
        """The means, variances and weights of the components for each row, of shape (n, K)."""
        columns = np.column_stack([covariates, sigma])
        scaled = (columns - self.centre[1:]) / self.spread[1:]
        means, deviations, logs = (
            np.asarray(a, float) for a in _evaluate(self.law, jnp.asarray(scaled, float))
        )
        weights = np.exp(logs)
        weights /= weights.sum(1, keepdims=True)
        return self.centre[0] + self.spread[0] * means, (self.spread[0] * deviations) ** 2, weights


@eqx.filter_jit
def _evaluate(law, rows):
    return jax.vmap(law)(rows)


def fit_covariates(
    y: Float[np.ndarray, " n"],
    sigma: Float[np.ndarray, " n"],
    covariates: Float[np.ndarray, "n p"],
    *,
    key: PRNGKeyArray,
    num_steps: int,
    progress_bar: bool,
) -> CovariatePrior:
    """Trains the prior by Stein's unbiased risk estimate.

    Reference:
        Ghosh, Ignatiadis, Koehler and Lee, arXiv 2502.20123 (2025).
    """
    columns = np.column_stack([y, covariates, sigma])
    centre, spread = columns.mean(0), columns.std(0)
    spread = np.where(spread > 1e-12 * np.abs(centre), spread, 1.0)
    scaled = (columns - centre) / spread
    rows = np.column_stack([scaled[:, 0], sigma / spread[0], scaled[:, 1:]])
    key_network, key = jax.random.split(key)
    prior = ConditionalPrior(covariates.shape[1], key_network)
    energy = _RowEnergy(prior, rows.shape[1])
    result = fit(
        energy,
        rows.astype(jnp.zeros(()).dtype),
        key=key,
        num_steps=num_steps,
        batch_size=min(512, len(rows)),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.01, num_steps)),
        objective=unbiased_risk,
        progress_bar=progress_bar,
    )
    return CovariatePrior(result.energy.prior, centre, spread)


_NUM_COMPONENTS = 10
_WIDTH = 32
