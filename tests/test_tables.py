"""Columns of unlike units: what goes in standardised comes back in the units."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpyro.infer import MCMC
from pages import names_after_running
from scipy.stats import norm
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)

import numpyro_neb as neb

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {"age": RNG.normal(50, 10, 300), "income": np.exp(RNG.normal(10, 0.7, 300))}
).assign(children=RNG.poisson(2, 300))
LOGS = np.log(TABLE["income"].to_numpy())
MINE = neb.Standardizer(TABLE, log=["income"])
# Sums of 300 float64 numbers.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def logarithm():
    return make_pipeline(FunctionTransformer(np.log, np.exp), StandardScaler())


def test_columns_in_standard_deviations():
    z = MINE.transform(TABLE)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-11)
    np.testing.assert_allclose(z.std(0), 1, **CLOSE)
    np.testing.assert_allclose(z[:, 1], (LOGS - LOGS.mean()) / LOGS.std(), **CLOSE)
    np.testing.assert_allclose(MINE.inverse_transform(z), TABLE, **CLOSE)
    np.testing.assert_allclose(MINE.inverse_transform(z.reshape(3, 100, 3))[1, 7], TABLE.loc[107])


def test_columns_are_found_by_name():
    moved = TABLE[["income", "children", "age"]].assign(other="text")
    np.testing.assert_array_equal(MINE.transform(moved), MINE.transform(TABLE))
    assert MINE.names == ("age", "income", "children")
    assert neb.Standardizer(TABLE.to_numpy()).names == ("x0", "x1", "x2")


@pytest.mark.parametrize(
    "scaler",
    [
        ColumnTransformer([("log", logarithm(), ["income"])], remainder=StandardScaler()),
        ColumnTransformer([("log", logarithm(), [1]), ("z", StandardScaler(), slice(0, 3, 2))]),
    ],
)
def test_scalers_of_scikit_learn_do_the_same(scaler):
    """Their columns move, ours keep their names."""
    theirs, z = neb.Standardizer(TABLE, scaler=scaler), MINE.transform(TABLE)
    np.testing.assert_allclose(theirs.transform(TABLE), z, **CLOSE)
    np.testing.assert_allclose(theirs.inverse_transform(z), TABLE, **CLOSE)
    for ours, other in zip(MINE.moments(z, 0.3), theirs.moments(z, 0.3), strict=True):
        np.testing.assert_allclose(ours, other, **CLOSE)
    assert not hasattr(scaler, "transformers_")  # a copy was fitted


@pytest.mark.parametrize(
    "scaler",
    [
        StandardScaler(),
        MinMaxScaler(),
        PowerTransformer(),
        QuantileTransformer(output_distribution="normal", n_quantiles=100),
        make_pipeline(PowerTransformer(), MinMaxScaler()),
        ColumnTransformer([("z", StandardScaler(), ["children"])], remainder="passthrough"),
    ],
)
def test_and_back_by_any_of_them(scaler):
    found = neb.Standardizer(TABLE, scaler=scaler)
    np.testing.assert_allclose(found.inverse_transform(found.transform(TABLE)), TABLE, **CLOSE)


def test_the_moments_of_a_log_normal():
    """X = exp(a + b Z), Z ~ N(m, s^2): E X = exp(a + b m + b^2 s^2 / 2)."""
    m, s = np.array([0.5, -1.0, 0.2]), np.array([0.3, 0.8, 0.0])
    found = MINE.moments(m, s)
    location, scale = LOGS.mean() + LOGS.std() * m[1], LOGS.std() * s[1]
    mean = np.exp(location + scale**2 / 2)
    np.testing.assert_allclose(found.mean[1], mean, rtol=1e-12)
    np.testing.assert_allclose(found.std[1], mean * np.sqrt(np.expm1(scale**2)), rtol=1e-10)
    sd = TABLE.std(ddof=0)
    np.testing.assert_allclose(found.mean[0], TABLE["age"].mean() + sd["age"] * m[0], rtol=1e-12)
    np.testing.assert_allclose(found.std[[0, 2]], [sd["age"] * s[0], 0], rtol=1e-12, atol=1e-12)


def test_a_posterior_in_the_units(x64):
    """Z ~ N(0, I): X given y is Gaussian in age and log-normal in income, in closed form."""
    energy, sigma = neb.MixtureEnergy(np.zeros((1, 3)), 0.5, covariances=np.eye(3)[None]), 0.5
    y = MINE.transform(TABLE[:4])
    mean, variance = y / (1 + sigma**2), sigma**2 / (1 + sigma**2)
    found = MINE.moments(neb.posterior_mean(energy, y), neb.posterior_std(energy, y))
    b, scale = LOGS.std(), LOGS.std() * np.sqrt(variance)
    income = np.exp(LOGS.mean() + b * mean[:, 1] + scale**2 / 2)
    np.testing.assert_allclose(found.mean[:, 1], income, rtol=1e-9)
    np.testing.assert_allclose(found.std[:, 1], income * np.sqrt(np.expm1(scale**2)), rtol=1e-9)
    ends = neb.empirical_bayes.credible_interval(energy, jnp.asarray(y), 0.9)
    lower, upper = map(MINE.inverse_transform, ends)
    expected = np.exp(LOGS.mean() + b * mean[:, 1] + scale * norm.ppf([[0.05], [0.95]]))
    np.testing.assert_allclose([lower[:, 1], upper[:, 1]], expected, rtol=1e-6)


def test_errors_in_standardised_units():
    rows = TABLE[:5]
    found = MINE.standard_errors(rows, [2.0, 500.0, 0.1])
    sd = TABLE.std(ddof=0)
    # By a central difference with step 1e-4, whose error for exp is 1e-8 / 6.
    np.testing.assert_allclose(found[:, 0], 2 / sd["age"], rtol=1e-8)
    np.testing.assert_allclose(found[:, 1], 500 / rows["income"] / LOGS.std(), rtol=1e-8)


def test_names_are_coordinates():
    energy = neb.MixtureEnergy(MINE.transform(TABLE[:50]), 0.5)
    mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=0, num_samples=3, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = neb.to_arviz(mcmc, MINE.coords, MINE.dims).posterior["x"]
    jumps = MINE.inverse_transform(draws)
    assert isinstance(jumps, xr.DataArray)
    assert jumps.dims == ("chain", "draw", "feature")
    income = jumps.sel(feature="income").values
    z = draws.sel(feature="income").values.astype(float)
    np.testing.assert_allclose(income, np.exp(LOGS.mean() + LOGS.std() * z), rtol=1e-12)


def gaps(column, row):
    table = TABLE.astype(float)
    table.loc[row, column] = np.nan
    return table


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table": TABLE.assign(b="u")}, TypeError, "table must hold .* row 0 of column 'b'"),
        ({"table": gaps("income", 7)}, ValueError, "got nan in row 7 of column 'income': fill"),
        ({"table": TABLE["age"]}, ValueError, r"table must have shape \(n, d\), got \(300,\)"),
        ({"table": TABLE[:1]}, ValueError, "table must have at least two rows"),
        ({"table": TABLE.assign(b=1.0)}, ValueError, "column 'b' is constant: leave it out"),
        ({"log": "age"}, TypeError, "log must be a list of names, got 'age'"),
        ({"log": ["size"]}, ValueError, r"log must name columns among .*, got \['size'\]"),
        ({"log": ["children"]}, ValueError, "column 'children' must be positive for its log, got"),
        ({"log": ["age"], "scaler": StandardScaler()}, ValueError, "log must be left out if"),
        ({"scaler": PCA()}, ValueError, "scaler must map each column by itself, upwards, which"),
        ({"scaler": PCA(2)}, ValueError, "got 2 columns for 3"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        neb.Standardizer(**{"table": TABLE} | arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MINE.transform(TABLE[["age"]]), r"lacks \['income', 'children'\]"),
        (lambda: MINE.transform(np.ones((2, 2))), "table must have 3 columns"),
        (lambda: MINE.transform(gaps("age", 3)), "got nan in row 3 of column 'age'"),
        (lambda: MINE.transform(-TABLE), "column 'income' must be positive for its log"),
        (lambda: MINE.inverse_transform(np.ones(2)), r"z must have shape \(\*batch, 3\), got"),
        (lambda: MINE.moments(np.ones(3), -1.0), "std must be at least 0, got -1"),
        (lambda: MINE.standard_errors(TABLE, 0.0), "errors must be positive"),
    ],
)
def test_what_its_methods_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.statistical
def test_the_page_runs():
    names = names_after_running((Path(__file__).parents[1] / "docs" / "tables.md").read_text())
    jumps, table = names["jumps"], names["table"]
    assert list(jumps["feature"].values) == list(table.columns)
    # The jumps are narrower than the data, and far from wild: within their range by a half.
    for name in table.columns:
        low, high = table[name].min(), table[name].max()
        seen = jumps.sel(feature=name).values
        assert low - (high - low) / 2 < seen.min() < np.median(seen) < seen.max()
        assert table[name].quantile(0.25) < np.median(seen) < table[name].quantile(0.75)
