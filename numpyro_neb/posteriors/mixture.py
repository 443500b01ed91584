"""The exact law of X given Y=y under a mixture."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import check_key
from numpyro_neb.posteriors.base import AbstractPosterior, normal_cdf, root_of
from numpyro_neb.posteriors.components import Components, contract
from numpyro_neb.posteriors.rosenblatt import rosenblatt
from numpyro_neb.posteriors.spreads import floor


@final
class MixturePosterior(AbstractPosterior):
    r"""The exact law of X given Y=y under a `MixtureEnergy`, itself a mixture.

        sum_i r_i N(m_i + C_i (C_i + sigma^2 I)^-1 (y - m_i), sigma^2 C_i (C_i + sigma^2 I)^-1)

    with the responsibilities r_i = P(i given y). With C_i = 0 its support is the locations, and
    `log_prob` is the log of a probability, not of a density: -inf away from them.

    Args:
        components: The law of X.
        sigma: The noise's standard deviation.
        y: The observation, of shape `event_shape`.
        own: Whether other observations of a batch have other components.

    Reference:
        Miyasawa 1961; Stephens, False discovery rates: a new deal, Biostatistics 18 (2017), for the
        local false sign rate.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> energy.posterior(jnp.array(-0.5)).mean  # tanh(y / sigma^2)
        Array(-0.46211717, dtype=float32)
    """

    components: Components
    sigma: Float[Array, ""]
    y: Float[Array, "*event"]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    own: bool = eqx.field(static=True)

    def __init__(
        self,
        components: Components,
        sigma: Float[Array, ""],
        y: Float[Array, "*event"],
        *,
        own: bool = False,
    ):
        self.components, self.sigma, self.y, self.event_shape = components, sigma, y, y.shape
        self.own = own

    @property
    def shared(self) -> tuple[str, ...]:
        """The components, unless each observation has its own."""
        return () if self.own else ("components",)

    @property
    def size(self) -> int:
        """The size of the components' locations."""
        return self.components.locs.size

    def _average(self, value, factor=None):
        """The average given y of the components' values, times factors if given."""
        both = lambda part: (None if factor is None else factor(part), value(part))  # noqa: E731
        return self.components.average(self.y, self.sigma, both)

    @property
    def _local(self):
        return self.components.local(self.y, self.sigma)

    def _means(self, part):
        return part.means(self.y, self.sigma)

    @property
    def _centre(self):
        """E[X given Y=y], flat, relative to the local point of reference."""
        return self._average(self._means)

    @property
    def mean(self) -> Float[Array, "*event"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The components' posterior means, averaged by their responsibilities."""
        return self._local.loc + self._centre.reshape(self.event_shape)

    def product(self, v: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Cov(X given Y=y) v: the spread of the components' means plus that within them."""
        centre, flat = self._centre, v.reshape(-1)
        centred = lambda part: self._means(part) - centre[None]  # noqa: E731
        total = self._average(centred, lambda part: contract("kd,d->k", centred(part), flat))
        if self.components.spreads is not None:
            total += self._average(lambda part: self._within(part, flat))
        return total.reshape(v.shape)

    def _within(self, part, v):
        """Cov(X given y, i) v."""
        scaled = part.shrunk(self.sigma) * contract("kji,j->ki", part.axes, v)
        return contract("kij,kj->ki", part.axes, scaled)

    @property
    def variance(self) -> Float[Array, "*event"]:
        """Var(X given Y=y) of each coordinate."""
        centre = self._centre

        def squares(part):
            return (self._means(part) - centre[None]) ** 2 + part.variances(self.sigma)

        return self._average(squares).reshape(self.event_shape)

    def cdf(self, x: ArrayLike) -> Float[Array, "*event"]:
        """P(X <= x given Y=y) of each coordinate."""
        return self._tail(x, 1)

    def upper_tail(self, x: ArrayLike) -> Float[Array, "*event"]:
        """P(X >= x given Y=y) of each coordinate."""
        return self._tail(x, -1)

    def _tail(self, x, sign):
        x = jnp.broadcast_to(jnp.asarray(x, self.y.dtype), self.event_shape)

        def below(part):
            # Not via the differences: their rounding would hide that a location is exactly zero.
            here = (sign * part.locs <= sign * x[None]).reshape(len(part.locs), -1)
            if part.spreads is None:
                return here.astype(x.dtype)
            means, deviations = self._coordinates(part)
            offset = (x - part.loc).reshape(1, -1)
            below = normal_cdf(sign * offset, sign * means, deviations)
            return jnp.where(deviations > 0, below, here)

        return self._average(below).reshape(self.event_shape)

    def _coordinates(self, part):
        """The mean, relative to `loc`, and the standard deviation of each coordinate given y, i."""
        return self._means(part), root_of(part.variances(self.sigma))

    def icdf(self, q: ArrayLike) -> Float[Array, "*event"]:
        """The quantile at q of each coordinate: an atom if C_i = 0, otherwise by bisection."""
        q = jnp.broadcast_to(jnp.asarray(q, self.y.dtype), self.event_shape)
        known = (q >= 0) & (q <= 1) & jnp.all(jnp.isfinite(self.y))
        find = self._quantile_of_atoms if self.components.spreads is None else self._quantile
        return jnp.where(known, find(q), jnp.nan)

    def _quantile_of_atoms(self, q):
        count = len(self.components.locs)
        atoms = jnp.sort(self.components.locs, axis=0)
        # What rounding leaves the sum of all short of one must not move the last quantiles.
        q = q * self.cdf(atoms[-1]) * (1 - 4 * jnp.finfo(q.dtype).eps)
        at = lambda index: jnp.take_along_axis(atoms, index[None], axis=0)[0]  # noqa: E731

        def halve(_, ends):
            low, high = ends
            middle = (low + high) // 2
            reached = self.cdf(at(middle)) >= q
            return jnp.where(reached, low, middle + 1), jnp.where(reached, middle, high)

        ends = jnp.zeros(q.shape, int), jnp.full(q.shape, count - 1)
        low, _ = jax.lax.fori_loop(0, count.bit_length(), halve, ends)
        return at(jnp.minimum(low, count - 1))

    def _quantile(self, q):
        # The quantile of a mixture lies between those of its components.
        inside = jnp.where((q > 0) & (q < 1), q, 0.5)
        local = self._local
        means, deviations = self._coordinates(local)
        weights = jnp.exp(self.components.log_responsibilities(self.y, self.sigma))

        # `cdf`, with what does not depend on x computed once.
        def cdf(x):
            below = normal_cdf(x.reshape(1, -1), means, deviations)
            return contract("k,kd->d", weights, below).reshape(x.shape)

        ends = means + deviations * ndtri(inside.reshape(1, -1))
        some = weights[:, None] > 0  # a component far off must not widen the bracket
        lower = jnp.min(jnp.where(some, ends, jnp.inf), axis=0).reshape(q.shape)
        upper = jnp.max(jnp.where(some, ends, -jnp.inf), axis=0).reshape(q.shape)
        size = jnp.max(jnp.where(some, jnp.abs(means) + deviations, 0), axis=0).reshape(q.shape)
        margin = 8 * jnp.finfo(q.dtype).eps * (size + jnp.abs(lower) + jnp.abs(upper))

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            reached = cdf(middle) >= inside
            return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

        # The dtype's mantissa bits, plus some for the width of the bracket.
        steps = jnp.finfo(q.dtype).nmant + 20
        low, high = jax.lax.fori_loop(0, steps, halve, (lower - margin, upper + margin))
        # A point mass that the bracket has closed on is the quantile itself.
        flat = (low.reshape(1, -1) <= means) & (means <= high.reshape(1, -1)) & (deviations == 0)
        atoms = jnp.where(flat, local.locs.reshape(means.shape), jnp.inf)
        atom = jnp.min(atoms, axis=0).reshape(q.shape)
        # Bisection gives no derivative: take the implicit one by a Newton step of length zero.
        x = jax.lax.stop_gradient(high)
        value, density = jax.jvp(cdf, (x,), (jnp.ones_like(x),))
        excess = (value - inside) / jax.lax.stop_gradient(jnp.where(density > 0, density, 1))
        x -= excess - jax.lax.stop_gradient(excess)
        x = jnp.where(jnp.isfinite(atom), atom, x + local.loc)
        return jnp.where(q == inside, x, jnp.inf * (q - 0.5))

    def check_density(self) -> None:
        """Raises a ValueError if a concrete (untraced) C_i is singular but not zero."""
        spreads = self.components.spreads
        known = spreads is not None and not isinstance(spreads, Tracer)
        if known and not np.all(np.asarray(spreads) > 0):  # under jit, `spreads > 0` is traced
            raise ValueError("log_prob needs a mixture whose covariances are positive definite")

    def around_mean(self, eps: Float[Array, "*event"]) -> Float[Array, "*event"] | None:
        """X - mean by `rosenblatt`, which needs a density: None if C_i = 0.

        A singular C_i has its zero eigenvalues raised to `spreads.floor`.
        """
        local = self._local
        if local.axes is None:
            return None
        # S_i = Cov(X given y, i) = axes diag(shrunk) axes' = R'R, by QR to keep the digits of R.
        shares = local.shrunk(self.sigma) / self.sigma**2
        shares = jnp.maximum(shares, jax.vmap(floor)(shares)[:, None])
        half = self.sigma * jnp.sqrt(shares)[:, :, None] * jnp.swapaxes(local.axes, 1, 2)
        upper = jnp.linalg.qr(half)[1]
        signs = jnp.where(jnp.diagonal(upper, axis1=1, axis2=2) < 0, -1, 1)[:, :, None]
        factors = jnp.swapaxes(signs.astype(upper.dtype) * upper, 1, 2)
        log_r = self.components.log_responsibilities(self.y, self.sigma)
        x = rosenblatt(log_r, self._means(local), factors, eps.reshape(-1))
        return (x - self._centre).reshape(self.event_shape)

    def log_prob(self, x: Float[Array, "*event"]) -> Float[Array, ""]:
        """The log density at x, or its log probability if C_i = 0."""
        self.check_density()
        local = self._local
        log_r = self.components.log_responsibilities(self.y, self.sigma)
        if local.spreads is None:
            here = jnp.all((local.locs == x[None]).reshape(len(log_r), -1), axis=1)
            return jax.nn.logsumexp(jnp.where(here, log_r, -jnp.inf))
        shrunk = local.shrunk(self.sigma)
        centred = (x - local.loc).reshape(1, -1) - self._means(local)
        along = contract("kij,ki->kj", local.axes, centred)
        logs = jnp.sum(along**2 / shrunk + jnp.log(2 * jnp.pi * shrunk), axis=1)
        return jax.nn.logsumexp(log_r - logs / 2)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of X, of shape (*shape, *event_shape)."""
        key_component, key_within = jax.random.split(check_key(key))
        log_r = self.components.log_responsibilities(self.y, self.sigma)
        index = jax.random.choice(key_component, len(log_r), shape, p=jnp.exp(log_r))
        local = self._local
        if local.spreads is None or local.axes is None:
            return local.locs[index]
        shrunk = local.shrunk(self.sigma)
        z = jax.random.normal(key_within, (*shape, shrunk.shape[1]), shrunk.dtype)
        z = jnp.sqrt(shrunk[index]) * z
        x = self._means(local)[index] + contract("...ij,...j->...i", local.axes[index], z)
        return local.loc + x.reshape(*shape, *self.event_shape)
