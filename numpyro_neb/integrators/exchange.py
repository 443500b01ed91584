"""Replica exchange: walks at neighbouring noise levels change places."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from numpyro_neb._internal.checks import require
from numpyro_neb.integrators.base import AbstractIntegrator, WalkState, accept_prob


def check_resumable(integrator: AbstractIntegrator) -> None:
    """Raises a TypeError unless the integrator can go on from what it shows."""
    own, base = type(integrator), AbstractIntegrator
    resumable = own.observe is base.observe or own.resumed is not base.resumed
    what = f"integrator must have a method resumed for several levels, got a {own.__name__}"
    require(resumable, f"{what} with observe alone", TypeError)


class Exchange(NamedTuple):
    """The walks after a round of exchanges, the levels in front.

    Attributes:
        walked: The integrator's states.
        seen: What it shows of them.
        accepted: Whether a level's walk changed places.
        partner: The level that each one tried to exchange with; itself for none.
        rate: The acceptance probability.
    """

    walked: WalkState
    seen: WalkState
    accepted: Bool[Array, " level"]
    partner: Int[Array, " level"]
    rate: Float[Array, " level"]


def exchange(
    key: PRNGKeyArray,
    round_: int | Int[Array, ""],
    walked: WalkState,
    seen: WalkState,
    *,
    evaluated: Callable[[WalkState], WalkState],
    resumed: Callable[[WalkState], WalkState],
) -> Exchange:
    r"""One round of exchanges between neighbours, by the Metropolis rule.

    Levels l and m exchange y_l and y_m with probability min(1, r),

        log r = phi_l(y_l) + phi_m(y_m) - phi_l(y_m) - phi_m(y_l),

    so that constants cancel, and the product of the laws exp(-phi_l) stays as it is whatever the
    energies. Pairs (0, 1), (2, 3), ... try in even rounds and (1, 2), (3, 4), ... in odd ones,
    which takes a walk from level to level faster than pairs at random. Velocities go along: their
    law is the same at each level, up to the bias of an unadjusted walk.

    Args:
        key: A JAX random key.
        round_: The number of the round.
        walked: The integrator's states, the levels in front.
        seen: What the integrator shows of them.
        evaluated: Puts positions and velocities at the levels: potentials and gradients there.
        resumed: The integrator's states that are shown as given ones.

    Reference:
        Swendsen and Wang, Phys. Rev. Lett. 57 (1986); Geyer, Computing Science and Statistics
        (1991); Syed et al., J. R. Stat. Soc. B 84 (2022), for alternating pairs.
    """
    level, even = jnp.arange(len(seen.potential)), round_ % 2
    partner = jnp.where(level % 2 == even, level + 1, level - 1)
    partner = jnp.where((partner >= 0) & (partner < len(level)), partner, level)
    there = evaluated(jax.tree.map(lambda a: a[partner], seen))
    gain = seen.potential - there.potential
    log_ratio = gain + gain[partner]
    # One number for both of a pair.
    draw = jax.random.exponential(key, gain.shape, gain.dtype)[jnp.minimum(level, partner)]
    finite = jnp.isfinite(there.potential)
    accepted = (draw > -log_ratio) & finite & finite[partner] & (partner != level)

    def chosen(new, old):
        return jnp.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return Exchange(
        walked=jax.tree.map(chosen, resumed(there), walked),
        seen=jax.tree.map(chosen, there, seen),
        accepted=accepted,
        partner=partner,
        rate=jax.vmap(accept_prob)(-log_ratio),
    )
