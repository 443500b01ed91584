"""optax's optimisers: what their updates ask for, and which parameters are their result."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from numpyro_neb._internal.checks import check_type

# What an update may ask for besides the gradient and the parameters. Most ignore what they don't
# know, but a line search refuses it, and `sam` takes nothing but its own.
_ARGUMENTS = (
    ("value", "grad", "value_fn"),
    ("value", "grad", "value_fn", "obj_fn"),
    ("grad_fn",),
    (),
)
# States of optimisers whose updates run, and mean something else than a step of `fit`.
_REFUSED = {
    optax.LookaheadState: "optax.lookahead trains two sets of parameters: ema_decay= averages them",
    optax.contrib.DifferentiallyPrivateAggregateState: (
        "differential privacy takes the gradient of each example, and fit has their mean"
    ),
}


class Optimizer(NamedTuple):
    """An optimiser as `fit` calls it.

    Attributes:
        init: Its state, given the parameters.
        update: The updates and the next state, given the gradient, the state, the parameters,
            `value=`, the loss, and `value_fn=`, the loss as a function of the parameters.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]


def checked_optimizer(optimizer: Any, params: PyTree, stateful: bool) -> Optimizer:
    """The optimiser, with an update that is given whatever it asks for.

    Its update is traced once, with abstract arrays.

    Args:
        optimizer: The argument of `fit`.
        params: The parameters.
        stateful: Whether the objective keeps a state: its loss is then for one step, and can't be
            evaluated again at other parameters.

    Raises:
        TypeError: If it is not an optax optimiser.
        ValueError: If its update can't be used; the message says why.
    """
    has_one = hasattr(optimizer, "gradient_transformation")  # optax.MultiSteps
    hint = ": give its .gradient_transformation()" if has_one else ""
    what = f"an optax.GradientTransformation{hint}"
    check_type("optimizer", optimizer, optax.GradientTransformation, what)
    optimizer = optax.with_extra_args_support(optimizer)
    try:
        state = jax.eval_shape(optimizer.init, params)
    except Exception as error:  # whatever an optimiser raises
        why = f"its init raised {type(error).__name__}: {error}"
        raise ValueError(f"optimizer does not work with fit: {why}") from error
    for found in _states(state, tuple(_REFUSED)):
        raise ValueError(f"optimizer does not work with fit: {_REFUSED[type(found)]}")

    def value_fn(params):
        if stateful:
            raise ValueError("an objective with a state has a loss for one step only")
        return sum(jnp.sum(x).astype(value.dtype) for x in jax.tree.leaves(params))

    value = jax.ShapeDtypeStruct((), jnp.result_type(*jax.tree.leaves(params), float))
    errors = []
    for names in _ARGUMENTS:
        update = _with(optimizer, names)

        def traced(grads, state, params, value, update=update):
            return update(grads, state, params, value=value, value_fn=value_fn)

        try:
            jax.eval_shape(traced, params, state, params, value)
        except Exception as error:  # whatever an optimiser raises
            errors.append(error)
        else:
            return Optimizer(optimizer.init, update)
    names = ", ".join(dict.fromkeys(type(s).__name__ for s in _states(state, tuple)))
    why = "; ".join(dict.fromkeys(str(errors[i]) for i in (0, -1)))
    raise ValueError(f"optimizer ({names}) does not work with fit: {why}") from errors[0]


def _with(optimizer, names):
    """The optimiser's update, given what it asks for."""

    def update(grads, state, params, *, value, value_fn):
        given = {
            "value": value,
            "grad": grads,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": lambda params, _: jax.grad(value_fn)(params),
        }
        # optax multiplies counts by rates, which is not for a user's strict promotion to forbid.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optimizer.update(grads, state, params, **{name: given[name] for name in names})

    return update


def result_of(opt_state: PyTree, params: PyTree) -> PyTree:
    """The parameters to evaluate and to return: those of the last step, for most optimisers.

    `schedule_free` trains at a point between these and the fast iterates, and `sam`, between two
    synchronisations, at an adversarial one.

    Args:
        opt_state: The optimiser's state.
        params: The parameters of the last step.
    """
    kinds = (optax.contrib.ScheduleFreeState, optax.contrib.SAMState)
    for state in _states(opt_state, kinds):
        if isinstance(state, optax.contrib.SAMState):
            if state.cache is not None:
                synced = state.steps_since_sync == 0
                choose = lambda p, c: jnp.where(synced, p, c)  # noqa: B023, E731
                params = jax.tree.map(choose, params, state.cache)
        else:
            params = jax.tree.map(lambda p, z: _averaged(state, p, z), params, state.z)  # noqa: B023
    return params


def returns_the_last(opt_state: PyTree) -> bool:
    """Whether `result_of` is the parameters of the last step."""
    return not _states(opt_state, (optax.contrib.ScheduleFreeState, optax.contrib.SAMState))


def _averaged(state, p, z):
    if isinstance(z, optax.MaskedNode):  # another optimiser's, in optax.partition
        return p
    return optax.contrib.schedule_free_eval_params(state._replace(z=z), p).astype(p.dtype)


def _states(opt_state, kinds) -> list[Any]:
    """The parts of an optimiser's state that are of some kinds, wherever in it."""
    is_one = lambda node: isinstance(node, kinds)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x)]
    inside = [s for x in found for child in x for s in _states(child, kinds)]
    return found + inside
