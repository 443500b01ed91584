"""The law of X given Y=y under any energy: a moment-matched Gaussian."""

from collections.abc import Callable
from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import check_key
from numpyro_neb._internal.convolutions import for_compiled_loops
from numpyro_neb.posteriors.base import AbstractPosterior, normal_cdf
from numpyro_neb.posteriors.components import contract
from numpyro_neb.posteriors.spreads import projected_root


@final
class LinearisedPosterior(AbstractPosterior):
    r"""The Gaussian with the mean and covariance of X given Y=y, from the jump and its Jacobian.

        E[X given Y=y] = x_hat(y),    Cov(X given Y=y) = sigma^2 d x_hat / dy

    Unless X is Gaussian, only these two moments are right, not the law of X given Y. A learned
    energy's covariance need not be positive definite: draws and `log_prob` use it with its negative
    eigenvalues raised to about zero (see `spreads.floor`). `product`, `covariance` and `variance`
    use the energy's covariance unchanged, until `prepared`.

    Args:
        denoise: The jump x_hat, a function of one y. Its convolutions are evaluated as matrix
            products on a CPU, so that a posterior can be used in a compiled loop.
        sigma: The noise's standard deviation.
        y: One observation.

    Reference:
        Efron, Tweedie's formula and selection bias, JASA 106 (2011).

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_neb.empirical_bayes import LinearisedPosterior
        >>> half = LinearisedPosterior(lambda y: y / 2, jnp.array(1.0), jnp.array([2.0]))
        >>> half.mean, half.variance  # of X ~ N(0, 1) given Y=2
        (Array([1.], dtype=float32), Array([0.5], dtype=float32))
    """

    mean: Float[Array, "*event"]
    sigma: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    # v -> (d x_hat / dy) v, a pytree.
    jacobian: Callable[[Float[Array, "*event"]], Float[Array, "*event"]]
    # The root of the covariance in units of sigma, and the share of its eigenvalues below zero.
    root: tuple[Float[Array, "d d"], Float[Array, ""]] | None

    reparametrised: ClassVar[bool] = True

    def __init__(self, denoise: Callable, sigma: Float[Array, ""], y: Float[Array, "*event"]):
        self.mean, self.jacobian = jax.linearize(for_compiled_loops(denoise), y)
        self.sigma, self.event_shape, self.root = sigma, y.shape, None

    def product(self, v: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Cov(X given Y=y) v, a Jacobian-vector product of the jump."""
        return self.sigma**2 * self.jacobian(v)

    @property
    def variance(self) -> Float[Array, "*event"]:
        """Var(X given Y=y) of each coordinate."""
        if self.root is None:
            return super().variance
        return self.sigma**2 * jnp.sum(self.root[0] ** 2, 1).reshape(self.event_shape)

    def prepared(self) -> "LinearisedPosterior":
        """The same Gaussian, with its covariance projected and its root computed once."""
        root, projected = self._root
        new = (Partial(_twice, root), (root, projected))
        pick = lambda p: (p.jacobian, p.root)  # noqa: E731
        return eqx.tree_at(pick, self, new, is_leaf=lambda leaf: leaf is None)

    @property
    def _root(self):
        if self.root is not None:
            return self.root
        return projected_root(self.covariance / self.sigma**2)

    @property
    def projected(self) -> Float[Array, ""]:
        """The share of the covariance's eigenvalues that are negative."""
        return self._root[1]

    def cdf(self, x: ArrayLike) -> Float[Array, "*event"]:
        """P(X <= x given Y=y) of each coordinate."""
        return normal_cdf(jnp.asarray(x, self.mean.dtype), self.mean, self.std)

    def upper_tail(self, x: ArrayLike) -> Float[Array, "*event"]:
        """P(X >= x given Y=y) of each coordinate."""
        return normal_cdf(-jnp.asarray(x, self.mean.dtype), -self.mean, self.std)

    def icdf(self, q: ArrayLike) -> Float[Array, "*event"]:
        """The quantile at q of each coordinate."""
        std, reach = self.std, ndtri(jnp.asarray(q, self.mean.dtype))
        # A point mass is its own quantile at 0 and 1, too, where the normal one is infinite.
        return self.mean + jnp.where((std > 0) | jnp.isnan(reach), std * reach, 0)

    def log_prob(self, x: Float[Array, "*event"]) -> Float[Array, ""]:
        """The log density at x."""
        root = self.sigma * self._root[0]
        z = jnp.linalg.solve(root, (x - self.mean).reshape(-1))
        normaliser = jnp.linalg.slogdet(root)[1] + z.size / 2 * jnp.log(2 * jnp.pi)
        return -jnp.sum(z**2) / 2 - normaliser.astype(z.dtype)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of X, of shape (*shape, *event_shape)."""
        root = self.sigma * self._root[0]
        eps = jax.random.normal(check_key(key), (*shape, len(root)), root.dtype)
        x = contract("...j,jk->...k", eps, root)
        return self.mean + x.reshape(*shape, *self.event_shape)


def _twice(root, v):
    return contract("ij,jk,k->i", root, root, v.reshape(-1)).reshape(v.shape)
