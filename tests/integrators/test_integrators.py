import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy import stats

from numpyro_neb import integrators
from numpyro_neb.integrators import (
    ABOBA,
    BAOAB,
    GHMC,
    MALA,
    ULA,
    AbstractIntegrator,
    Microcanonical,
    Target,
    WalkState,
    metropolis,
    walk,
)

pytestmark = pytest.mark.statistical

# Coordinates of unequal width in units of sigma; Y ~ N(0, x_sd^2 + sigma^2).
SIGMA = 0.5
X_SD = np.array([0.2, 0.6, 1.5])
Y_VAR = X_SD**2 + SIGMA**2
GAUSSIAN = targets.gaussian(X_SD, SIGMA)
TARGET = Target(GAUSSIAN, SIGMA)
CHAINS = 8192
EVERY = [
    kind()
    for kind in vars(integrators).values()
    if isinstance(kind, type)
    and issubclass(kind, AbstractIntegrator)
    and kind is not AbstractIntegrator
]
UNDERDAMPED = [BAOAB, ABOBA, GHMC]


def name_of(value):
    return value.__name__ if isinstance(value, type) else type(value).__name__


def stationary(integrator, *, num_steps, variance, target=TARGET, mean=0.0):
    """What is recorded of independent chains, begun at a Gaussian of `variance` and walked on."""

    def chain(key):
        key_start, key_init, key_walk = jax.random.split(key, 3)
        start = mean + jnp.sqrt(jnp.asarray(variance, float)) * jax.random.normal(
            key_start, np.shape(variance)
        )
        state = integrator.init(target, start, key_init)
        state, statistic = walk(integrator, target, state, key_walk, num_steps)
        return integrator.observe(target, state), statistic

    return jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), CHAINS))


def assert_variance(draws, variance):
    # A Gaussian's sample second moment has standard error variance sqrt(2 / n).
    second = np.mean(np.asarray(draws, float) ** 2, axis=0)
    targets.within(second, variance, variance * np.sqrt(2 / CHAINS))


def test_the_statistic_of_a_walk_is_the_mean_over_its_steps():
    """Of an integrator that has one; a user's own says which."""

    class Steady(BAOAB):
        def acceptance_statistic(self, energy_error):
            return 0 * energy_error + 0.25

    key = jax.random.key(0)
    state = BAOAB().init(TARGET, jnp.zeros(3), key)
    assert walk(BAOAB(), TARGET, state, key, 3)[1] is None
    for num_steps in (1, 3):
        assert walk(Steady(), TARGET, state, key, num_steps)[1] == 0.25


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.8])
def test_baoab_stationary_variance(step_size):
    """Position exact at every stable step; velocity 1 - h^2 / (4 s^2)."""
    state, _ = stationary(BAOAB(step_size=step_size), num_steps=400, variance=2 * Y_VAR)
    assert_variance(state.position, Y_VAR)
    assert_variance(state.velocity, 1 - (step_size * SIGMA) ** 2 / (4 * Y_VAR))


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.8])
def test_aboba_stationary_variance(step_size):
    """Position exact at every stable step; velocity 1 / (1 - h^2 / (4 s^2))."""
    state, _ = stationary(ABOBA(step_size=step_size), num_steps=400, variance=2 * Y_VAR)
    assert_variance(state.position, Y_VAR)
    assert_variance(state.velocity, 1 / (1 - (step_size * SIGMA) ** 2 / (4 * Y_VAR)))


@pytest.mark.parametrize("step_size", [0.5, 0.8])
def test_ula_stationary_variance(step_size):
    """s^2 / (1 - eta / (2 s^2)), visibly wider than the target at these steps."""
    eta = (step_size * SIGMA) ** 2
    biased = Y_VAR / (1 - eta / (2 * Y_VAR))
    assert biased[0] > Y_VAR[0] * (1 + targets.STANDARD_ERRORS * np.sqrt(2 / CHAINS))
    state, _ = stationary(ULA(step_size=step_size), num_steps=400, variance=biased * 1.5)
    assert_variance(state.position, biased)


@pytest.mark.parametrize("step_size", [0.5, 0.8])
def test_mala_is_exact_where_ula_is_not(step_size):
    state, acceptance = stationary(MALA(step_size), num_steps=600, variance=2 * Y_VAR)
    assert 0.3 < acceptance.mean() < 0.999
    assert_variance(state.position, Y_VAR)


@pytest.mark.parametrize("step_size", [0.8, 1.5])
def test_ghmc_is_exact(step_size):
    integrator = GHMC(step_size, friction=0.5)
    state, acceptance = stationary(integrator, num_steps=600, variance=2 * Y_VAR)
    assert 0.3 < acceptance.mean() < 0.999
    assert_variance(state.position, Y_VAR)
    assert_variance(state.velocity, np.ones(3))


class Quartic:
    """phi(y) = y^4 / 4 - y: skewed, and far from Gaussian, its law known by quadrature."""

    def __call__(self, y):
        return jnp.sum(y**4 / 4 - y)

    def __init__(self):
        grid = np.linspace(-6, 6, 20001)
        density = np.exp(-(grid**4) / 4 + grid)
        self.distribution = np.cumsum(density) / density.sum()
        self.grid = grid
        mean = density @ grid / density.sum()
        self.mean, self.variance = mean, density @ (grid - mean) ** 2 / density.sum()

    def cdf(self, y):
        return np.interp(y, self.grid, self.distribution)


@pytest.mark.parametrize(
    ("integrator", "exact"),
    [
        (ULA(0.7), False),
        (MALA(0.7), True),
        (BAOAB(1.3), False),
        (ABOBA(1.0), False),
        (GHMC(1.3), True),
    ],
    ids=lambda value: "" if isinstance(value, bool) else name_of(value),
)
def test_off_gaussians_only_the_metropolis_ones_are_exact(integrator, exact):
    """At steps where the unadjusted ones are visibly biased, or explode."""
    law = Quartic()
    target = Target(law)
    # Begun in the bulk: in tails lighter than a Gaussian's, long steps are rejected for very long.
    start = np.full(1, 0.1)
    state, _ = stationary(integrator, num_steps=400, variance=start, target=target, mean=0.7)
    y = np.asarray(state.position[:, 0], float)
    distance = stats.kstest(y, law.cdf).statistic * np.sqrt(CHAINS)
    assert (distance < targets.KOLMOGOROV) == exact, distance
    if exact:
        targets.within(y.mean(), law.mean, np.sqrt(law.variance / CHAINS))


@pytest.mark.parametrize("kind", UNDERDAMPED, ids=name_of)
def test_friction_is_per_time(kind):
    """The velocity's memory over one free step is exp(-gamma h), gamma in units of 1/sigma."""
    flat = Target(lambda y: jnp.zeros(()), SIGMA)
    integrator = kind(step_size=0.5, friction=0.7)
    state = integrator.init(flat, jnp.zeros(CHAINS), jax.random.key(0))
    after, _ = integrator.step(flat, state, jax.random.key(1))
    correlation = np.mean(np.asarray(state.velocity * after.velocity, float))
    # A product of unit Gaussians with correlation c has variance 1 + c^2.
    decay = np.exp(-0.7 * 0.5)
    targets.within(correlation, decay, np.sqrt((1 + decay**2) / CHAINS))


@pytest.mark.parametrize("kind", UNDERDAMPED, ids=name_of)
def test_initial_velocity(kind):
    y = jnp.zeros(CHAINS)
    flat = Target(lambda y: jnp.zeros(()), SIGMA)
    rest = kind(initial_velocity="zero").init(flat, y, jax.random.key(0))
    assert not rest.velocity.any()
    moving = kind().init(flat, y, jax.random.key(0))
    assert_variance(moving.velocity, 1.0)


def test_paper_walk():
    assert ULA.paper().step_size == 0.01
    y = jnp.array([1.0, -1.0, 0.5])
    key = jax.random.key(3)
    state = ULA.paper().init(TARGET, y, key)
    delta = SIGMA / 100
    noise = jax.random.normal(key, (3,))
    expected = y - delta**2 * jax.grad(GAUSSIAN)(y) + np.sqrt(2) * delta * noise
    stepped, _ = ULA.paper().step(TARGET, state, key)
    np.testing.assert_allclose(stepped.position, expected, rtol=1e-6)


def test_mala_ratio_is_the_textbook_one():
    """phi' - phi + log q(y'|y) - log q(y|y'), the densities of the two steps by scipy."""
    y, key = jnp.array([1.0, -1.0, 0.5]), jax.random.key(3)
    step, eta = 0.6, (0.6 * SIGMA) ** 2
    state = ULA(step).init(TARGET, y, key)
    after, energy_error = ULA(step).step(TARGET, state, key)

    def log_q(there, here):
        drifted = here.position - eta * here.gradient
        return stats.norm.logpdf(there.position, drifted, np.sqrt(2 * eta)).sum()

    expected = after.potential - state.potential + log_q(after, state) - log_q(state, after)
    np.testing.assert_allclose(energy_error, expected, rtol=1e-4)


def test_energy_error_makes_an_unadjusted_step_exact():
    """A Metropolis test on the energy error of BAOAB takes its bias away: it is the right one."""
    law, integrator = Quartic(), BAOAB(1.3)
    target = Target(law)

    def chain(key):
        key_start, key_init, key = jax.random.split(key, 3)
        start = 0.7 + 0.3 * jax.random.normal(key_start, (1,))  # in the bulk, as above

        def body(state, key):
            key_step, key_accept = jax.random.split(key)
            proposal, energy_error = integrator.step(target, state, key_step)
            return metropolis(key_accept, state, proposal, energy_error), None

        state = integrator.init(target, start, key_init)
        return jax.lax.scan(body, state, jax.random.split(key, 400))[0].position[0]

    y = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), CHAINS)), float)
    distance = stats.kstest(y, law.cdf).statistic * np.sqrt(CHAINS)
    assert distance < targets.KOLMOGOROV


@pytest.mark.parametrize(
    "integrator", [BAOAB(0.3, friction=1e-6), ABOBA(0.3), ULA(0.3 / np.sqrt(2))], ids=name_of
)
def test_energy_error_of_a_leapfrog(integrator):
    """Its variance is (h/s)^6 / 16 on N(0, s^2), which the tuning of the step rests on."""
    target = Target(targets.gaussian([0.0], 1.0))

    def error(key):
        key_start, key_init, key_first, key_step = jax.random.split(key, 4)
        state = integrator.init(target, jax.random.normal(key_start, (1,)), key_init)
        state, _ = integrator.step(target, state, key_first)
        return integrator.step(target, state, key_step)[1]

    errors = np.asarray(jax.jit(jax.vmap(error))(jax.random.split(jax.random.key(0), CHAINS)))
    # To leading order it is a product of two Gaussians, of kurtosis 9; the next order is (h/s)^2.
    leading = 0.3**6 / 16
    assert abs(errors.astype(float).var() / leading - 1) < 0.3**2 + 5 * np.sqrt(8 / CHAINS)


def test_metropolis_turns_a_rejected_velocity():
    state = WalkState(jnp.zeros(2), jnp.ones(2), jnp.zeros(()), jnp.ones(2))
    proposal = WalkState(jnp.ones(2), 2 * jnp.ones(2), jnp.ones(()), jnp.zeros(2))
    for energy_error in (jnp.inf, jnp.nan):
        kept = metropolis(jax.random.key(0), state, proposal, jnp.array(energy_error))
        assert jnp.array_equal(kept.position, state.position)
        assert jnp.array_equal(kept.velocity, -state.velocity)
    taken = metropolis(jax.random.key(0), state, proposal, jnp.array(-1.0))
    assert jnp.array_equal(taken.velocity, proposal.velocity)


@pytest.mark.parametrize("integrator", EVERY, ids=name_of)
class TestEveryIntegrator:
    def test_what_is_recorded_carries_the_gradient(self, integrator, strict):
        state = integrator.init(TARGET, jnp.ones(3), jax.random.key(0))
        for key in jax.random.split(jax.random.key(1), 3):
            state, _ = integrator.step(TARGET, state, key)
            seen = integrator.observe(TARGET, state)
            for s in (state, seen):
                value, gradient = TARGET(s.position)
                np.testing.assert_allclose(s.potential, value, rtol=1e-6)
                np.testing.assert_allclose(s.gradient, gradient, rtol=1e-6)
        kinetic = 0.0 if state.velocity is None else jnp.sum(state.velocity**2) / 2
        np.testing.assert_allclose(state.energy, state.potential + kinetic, rtol=1e-6)

    def test_starts_where_it_is_told(self, integrator):
        start = jnp.array([1.0, -2.0, 0.5])
        state = integrator.init(TARGET, start, jax.random.key(0))
        seen = integrator.observe(TARGET, state)
        np.testing.assert_allclose(seen.position, start, atol=1e-6)

    def test_one_gradient_a_step(self, integrator):
        calls = []

        def potential(y):
            jax.debug.callback(lambda: calls.append(1))
            return GAUSSIAN(y)

        target = Target(potential, SIGMA)
        state = integrator.init(target, jnp.ones(3), jax.random.key(0))
        jax.effects_barrier()
        before = len(calls)
        jax.jit(integrator.step, static_argnums=0)(target, state, jax.random.key(1))
        jax.effects_barrier()
        assert (before, len(calls) - before) == (1, 1)

    def test_units(self, integrator):
        """Everything measured in other units: the same walk, the same energy error."""
        wide = targets.gaussian(10 * X_SD, 10 * SIGMA)
        walked, errors = [], []
        for energy, scale in ((GAUSSIAN, 1.0), (wide, 10.0)):
            target = Target(energy, energy.sigma)
            state = integrator.init(target, scale * jnp.ones(3), jax.random.key(0))
            state, _ = walk(integrator, target, state, jax.random.key(1), 5)
            walked.append(state.position / scale)
            errors.append(integrator.step(target, state, jax.random.key(2))[1])
        np.testing.assert_allclose(*walked, rtol=1e-4)
        np.testing.assert_allclose(*errors, atol=1e-4)

    def test_a_unit_of_zero_stays(self, integrator):
        """The frozen coordinate stays, and neither moves nor counts in the energy error."""
        unit = jnp.array([SIGMA, 0.0, SIGMA])
        target = Target(GAUSSIAN, unit)
        state = integrator.init(target, jnp.ones(3), jax.random.key(0))
        state, _ = walk(integrator, target, state, jax.random.key(1), 20)
        assert state.position[1] == 1.0
        assert jnp.all(state.position[jnp.array([0, 2])] != 1.0)
        assert state.velocity is None or state.velocity[1] == 0.0

    def test_other_units_for_each_coordinate_are_a_preconditioner(self, integrator):
        """Coordinates scaled apart, each with its own unit: the same walk as unscaled."""
        scales = jnp.array([1.0, 10.0, 0.1])
        stretched = lambda y: GAUSSIAN(y / scales)  # noqa: E731
        walked = []
        for target, scale in ((TARGET, 1.0), (Target(stretched, SIGMA * scales), scales)):
            state = integrator.init(target, scale * jnp.ones(3), jax.random.key(0))
            state, _ = walk(integrator, target, state, jax.random.key(1), 5)
            walked.append(state.position / scale)
        np.testing.assert_allclose(*walked, rtol=1e-4)

    def test_score_clipping_cuts_the_force_alone(self, integrator):
        gradient = jnp.array([3.0, -4.0, 0.0]) / SIGMA
        # The limit is max_score * (sqrt(d) + 6), here sqrt(3).
        share_of_limit = float(np.sqrt(3) / (np.sqrt(3) + 6))
        cut = Target(GAUSSIAN, SIGMA, max_score=share_of_limit)
        huge = cut.force(jnp.array([1e30, 0.0, 0.0]))
        np.testing.assert_allclose(huge, [np.sqrt(3), 0, 0], rtol=1e-6)
        frozen = Target(GAUSSIAN, jnp.array([SIGMA, 0.0, 0.0]), max_score=1 / 7)
        np.testing.assert_allclose(frozen.force(gradient), [1, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(jnp.linalg.norm(cut.force(gradient)), np.sqrt(3), rtol=1e-6)
        np.testing.assert_allclose(cut.force(gradient / 10), SIGMA * gradient / 10, rtol=1e-6)
        y = jnp.full(3, 50.0)
        state = integrator.init(cut, y, jax.random.key(0))
        seen = integrator.observe(cut, state)
        np.testing.assert_allclose(seen.gradient, jax.grad(GAUSSIAN)(y), rtol=1e-4)
        after, _ = integrator.step(cut, state, jax.random.key(1))
        free, _ = integrator.step(TARGET, state, jax.random.key(1))
        if integrator.target_accept_prob is None and not isinstance(integrator, Microcanonical):
            force_cut, force_free = (np.linalg.norm(t.force(state.gradient)) for t in (cut, TARGET))
            # The same noise on both: they lie apart by the difference of the forces alone.
            h = integrator.step_size
            apart = float(jnp.linalg.norm(after.position - free.position))
            kicked = (force_free - force_cut) * h**2 * SIGMA
            # The O step damps what the first half kick has made.
            damped = (1 + np.exp(-getattr(integrator, "friction", 0.0) * h)) / 2
            share = {ULA: 1.0, BAOAB: damped / 2, ABOBA: damped}[type(integrator)]
            np.testing.assert_allclose(apart, share * kicked, rtol=1e-3)

    def test_bad_step_size(self, integrator, untyped):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            message = rf"step_size must be (positive|finite), got {value}"
            with pytest.raises(ValueError, match=message):
                type(integrator)(step_size=value)


@pytest.mark.parametrize("d", [1, 2, 10, 100, 10_000])
def test_a_max_score_of_one_cuts_no_true_score(d):
    """Of one i-sphere the score is -eps: its norm is chi-distributed, and no score's is larger."""
    target = Target(jnp.sum, 1.0, max_score=1.0)
    limit = float(jnp.linalg.norm(target.force(jnp.full(d, 1e3))))
    np.testing.assert_allclose(limit, np.sqrt(d) + 6, rtol=1e-5)
    assert stats.chi(d).sf(limit) < np.exp(-18)
    # Not loose either: half of it does cut some in one or two dimensions.
    assert d > 2 or stats.chi(d).sf(limit / 2) > 1e-4


@pytest.mark.parametrize("kind", [MALA, GHMC], ids=name_of)
def test_clipping_leaves_a_metropolis_law_exact(kind):
    # A limit of 0.7 sqrt(d).
    root = len(Y_VAR) ** 0.5
    target = Target(GAUSSIAN, SIGMA, max_score=0.7 * root / (root + 6))
    state, _ = stationary(kind(0.7), num_steps=600, variance=1.5 * Y_VAR, target=target)
    assert_variance(state.position, Y_VAR)


@pytest.mark.parametrize("kind", UNDERDAMPED, ids=name_of)
def test_bad_arguments(kind, untyped):
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"friction must be (positive|finite), got {value}"):
            kind(friction=value)
    with pytest.raises(ValueError, match="initial_velocity must be 'gaussian' or 'zero', got 'x'"):
        kind(initial_velocity="x")
