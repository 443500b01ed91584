"""Walk-jump sampling as a NumPyro MCMC kernel."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_neb.energies import AbstractEnergy, check_energy, initial_position
from numpyro_neb.integrators import BAOAB, AbstractIntegrator, WalkState, walk


class WalkJumpState(NamedTuple):
    """The state of a walk-jump chain; `vectorized` chains have a leading dimension.

    Attributes:
        draw: {"y": the walk, "x": the jump y - sigma^2 grad phi(y)}.
        walk: The integrator's state.
        lp: -phi(y), the log density up to a constant.
        energy: The Hamiltonian phi(y) + norm(v)^2 / 2; phi(y) for an overdamped walk.
        step_size: The integrator's step, in the data's units.
        diverging: Whether the walk has left the finite numbers.
        num_diverging: How many draws have, so far.
        rng_key: The random key of the next draw.
    """

    draw: dict[str, Float[Array, "..."]]
    walk: WalkState
    lp: Float[Array, "..."]
    energy: Float[Array, "..."]
    step_size: Float[Array, "..."]
    diverging: Bool[Array, "..."]
    num_diverging: Int[Array, "..."]
    rng_key: Array


@dataclasses.dataclass(frozen=True, eq=False)
class WalkJumpKernel(MCMCKernel):
    r"""Walks on the smoothed density f(y) ∝ exp(-phi(y)), and jumps to x = E[X given Y=y].

    A draw is `{"y": y, "x": x_hat(y)}`: y the state of the Langevin walk, x the jump from it,
    y - sigma^2 grad phi(y), which is read off the gradient of the last step and costs nothing.
    The law of the jumps is narrower than that of X: Var(x) = Var(X) - E Cov(X given Y).

    Chains start from N(loc, scale^2 + sigma^2), or from the `init_params` given to `MCMC.run`: an
    array of shape (num_chains, *event_shape), without the first axis for one chain. Any
    `chain_method` works; "vectorized" is the fastest on one device. Extra fields are those of
    `WalkJumpState`; "lp", "energy", "step_size" and "diverging" are always recorded.

    A walk that meets NaN or infinity stays there. Its draws are marked `diverging`, and counted in
    the progress bar and by `print_summary`: take a smaller step.

    NumPyro compiles its loop anew at every `run` with `progress_bar=False`, and not with the bar
    on, where each recorded draw costs about 0.1 ms instead; with `num_steps` of 10 or more that is
    next to nothing.

    Args:
        energy: The energy phi.
        integrator: The step of the walk. The default, `BAOAB()` (step sigma, friction 0.2/sigma),
            needs no tuning on a smoothed density.
        num_steps: Steps of the walk between two draws.

    Raises:
        TypeError: If `energy` is no `AbstractEnergy` (the message says how to wrap it), or
            `integrator` no integrator.
        ValueError: If num_steps is not a positive int, or init_params has another shape than above
            or is not finite.

    Reference:
        NEB algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> kernel = neb.WalkJumpKernel(energy, num_steps=5)
        >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> {name: draws.shape for name, draws in mcmc.get_samples().items()}
        {'x': (100, 2), 'y': (100, 2)}
    """

    energy: AbstractEnergy
    _: dataclasses.KW_ONLY
    integrator: AbstractIntegrator = BAOAB()  # noqa: RUF009 (frozen, and holds plain floats)
    num_steps: int = 1

    # ArviZ asks every kernel for its model.
    model = None

    def __post_init__(self):
        check_energy(self.energy)
        if not isinstance(self.integrator, AbstractIntegrator):
            raise TypeError(
                "integrator must be one of numpyro_neb.integrators, as in BAOAB(step_size=1.0),"
                f" got {self.integrator!r}"
            )
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"num_steps must be a positive int, got {self.num_steps!r}")

    @property
    def sample_field(self) -> str:
        """The field of the state that `MCMC.get_samples` returns."""
        return "draw"

    @property
    def default_fields(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The fields of the state that `MCMC` always records."""
        return ("draw", "diverging", "lp", "energy", "step_size")

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: Float[Array, "..."] | None,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> WalkJumpState:
        """The first state: `init_params` or a draw from N(loc, scale^2 + sigma^2)."""
        del num_warmup
        if model_args or model_kwargs:
            raise TypeError("WalkJumpKernel(energy) walks on the energy: run takes no model args")
        batched = not is_prng_key(rng_key)
        if init_params is not None:
            init_params = self._checked(init_params, rng_key.shape[:1] if batched else ())
        return _init(self.energy, self.integrator, rng_key, init_params, batched)

    def sample(
        self,
        state: WalkJumpState,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> WalkJumpState:
        """The next state: `num_steps` steps of the walk, and the jump."""
        del model_args, model_kwargs
        if is_prng_key(state.rng_key):
            return self._sample_one(state)
        return jax.vmap(self._sample_one)(state)

    def get_diagnostics_str(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: WalkJumpState
    ) -> str:
        """What the progress bar shows beside itself."""
        text = f"step size {float(state.step_size):.2e}"
        count = int(state.num_diverging)
        return f"{text}, {count} diverging" if count else text

    def _sample_one(self, state):
        rng_key, key = jax.random.split(state.rng_key)
        target = jax.value_and_grad(self.energy)
        unit = self.energy.sigma
        walked = walk(self.integrator, target, state.walk, key, unit, self.num_steps)
        return _record(self.energy, self.integrator, walked, rng_key, state.num_diverging)

    def _checked(self, init_params, chains):
        shape = (*chains, *self.energy.event_shape)
        array = jnp.asarray(init_params)
        if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"init_params must be a float array of shape {shape},"
                f" got {array.dtype} of shape {array.shape}"
            )
        if not isinstance(array, Tracer) and not np.all(np.isfinite(array)):
            raise ValueError("init_params must be finite, got NaN or infinity")
        return array.astype(self.energy.sigma.dtype)


@eqx.filter_jit
def _init(energy, integrator, rng_key, init_params, batched):
    def one(rng_key, position):
        rng_key, key_position, key_walk = jax.random.split(rng_key, 3)
        if position is None:
            position = initial_position(energy, key_position)
        state = integrator.init(jax.value_and_grad(energy), position, key_walk)
        return _record(energy, integrator, state, rng_key, jnp.zeros((), int))

    return jax.vmap(one)(rng_key, init_params) if batched else one(rng_key, init_params)


def _record(energy, integrator, walked, rng_key, num_diverging):
    x = walked.position - energy.sigma**2 * walked.gradient
    diverging = ~(jnp.isfinite(walked.energy) & jnp.all(jnp.isfinite(x)))
    return WalkJumpState(
        draw={"y": walked.position, "x": x},
        walk=walked,
        lp=-walked.potential,
        energy=walked.energy,
        step_size=jnp.asarray(integrator.step_size * energy.sigma),
        diverging=diverging,
        num_diverging=num_diverging + diverging.astype(num_diverging.dtype),
        rng_key=rng_key,
    )
