"""Tables: columns of unlike units as standardised numbers, and results back in the units."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_neb._internal.checks import check_reals, finite_on_host, require


class Moments(NamedTuple):
    """Means and standard deviations in the units of the columns, each of shape (*batch, d).

    Attributes:
        mean: The means.
        std: The standard deviations.
    """

    mean: np.ndarray
    std: np.ndarray


class Standardizer:
    """The columns of a table in units of their standard deviations, and results back again.

    Noise of one sigma needs columns of one scale. A column x becomes z = (x - mean) / std, or the
    same of log x for the columns named in `log`; an energy of z has its sigma in standard
    deviations of the columns. Any scaler with the `fit`, `transform` and `inverse_transform` of
    scikit-learn's can do this in place of ours, if it maps each column by itself and upwards:
    `PowerTransformer()`, say, `QuantileTransformer(output_distribution="normal")`, a pipeline, or a
    `ColumnTransformer`, whose columns stay in their order.

    Args:
        table: Real numbers of shape (n, d), n at least 2: a data frame, whose columns keep their
            names, or an array, whose columns are called x0, x1, ...
        log: The names of positive columns of which to take logarithms first.
        scaler: A scaler in place of ours; a copy of it is fitted to the table.

    Attributes:
        names: The columns' names.

    Raises:
        TypeError: If the table holds anything but real numbers; the error names column and row.
        ValueError: If it has another shape, a number is not finite, a column is constant, a name
            in `log` is not a column's, a column in `log` is not positive, or both `log` and
            `scaler` are given.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> table = np.array([[1.0, 10.0], [3.0, 1000.0]])
        >>> standard = neb.Standardizer(table, log=["x1"])
        >>> standard.transform(table)
        array([[-1., -1.],
               [ 1.,  1.]])
        >>> standard.inverse_transform(np.zeros(2))  # the mean, and the geometric mean
        array([  2., 100.])
    """

    names: tuple[str, ...]

    def __init__(self, table: Any, *, log: Sequence[str] = (), scaler: Any = None):
        given = getattr(table, "columns", None)
        x = self._checked(table)
        require(len(x) > 1, f"table must have at least two rows, got shape {x.shape}")
        count = x.shape[-1]
        self.names = tuple(map(str, range(count) if given is None else given))
        if given is None:
            self.names = tuple(f"x{name}" for name in self.names)
        self._check_finite(x)
        require(len(set(self.names)) == count, f"columns must differ in name, got {self.names}")
        for name, column in zip(self.names, x.T, strict=True):
            require(np.ptp(column) > 0, f"column {name!r} is constant: leave it out")
        require(not isinstance(log, str), f"log must be a list of names, got {log!r}", TypeError)
        unknown = [name for name in log if name not in self.names]
        require(not unknown, f"log must name columns among {self.names}, got {unknown}")
        both = scaler is not None and len(log) > 0
        require(not both, "log must be left out if a scaler is given: make it a part of the scaler")
        mine = _Scaler(self.names, tuple(log))
        self._scaler = mine if scaler is None else _Foreign(deepcopy(scaler), self.names)
        self._scaler.fit(x)
        if scaler is not None:
            self._check_scaler(x)

    def transform(self, table: Any) -> Float[np.ndarray, "n d"]:
        """The rows of a table in standardised units.

        Args:
            table: Real numbers of shape (n, d); the columns of a data frame are found by name.

        Raises:
            TypeError: If the table holds anything but real numbers.
            ValueError: If it lacks a column, has another shape, or a number is not finite, or not
                positive in a column of which the logarithm is taken.
        """
        if hasattr(table, "columns"):
            missing = [name for name in self.names if name not in list(map(str, table.columns))]
            require(not missing, f"table must have the columns {self.names}, and lacks {missing}")
            by_name = {str(name): name for name in table.columns}
            table = table[[by_name[name] for name in self.names]]
        x = self._checked(table)
        fits = x.shape[1] == len(self.names)
        require(fits, f"table must have {len(self.names)} columns, got shape {x.shape}")
        self._check_finite(x)
        return self._scaler.transform(x)

    def inverse_transform(self, z: Any) -> Any:
        """Standardised numbers in the units of the columns: the jumps of a walk, say.

        A nonlinear scaler doesn't take means to means: see `moments`.

        Args:
            z: Real numbers of shape (*batch, d). Of an `xarray.DataArray`, dimensions and
                coordinates are kept.

        Raises:
            TypeError: If z does not hold real numbers.
            ValueError: If its last dimension is not d, or a number is not finite.
        """
        flat = finite_on_host("z", z)
        fits = flat.ndim > 0 and flat.shape[-1] == len(self.names)
        require(fits, f"z must have shape (*batch, {len(self.names)}), got {flat.shape}")
        x = self._scaler.inverse_transform(flat.reshape(-1, len(self.names))).reshape(flat.shape)
        return z.copy(data=x) if hasattr(z, "dims") and hasattr(z, "coords") else x

    def moments(self, mean: Any, std: Any) -> Moments:
        """The mean and standard deviation in the units of the columns, of a Gaussian in z.

        For x = g(z), E g(Z) and sd g(Z), by Gauss-Hermite quadrature with 40 nodes: exact for
        linear scalers; of the logarithm, the mean of a log-normal, which is above its median
        g(E Z). With a posterior's mean and sd, the posterior's in the units.

        Args:
            mean: Means in standardised units, of shape (*batch, d).
            std: Standard deviations, of the same shape or one that broadcasts to it; `sigma`, say.

        Raises:
            TypeError: If one does not hold real numbers.
            ValueError: If shapes don't fit, a number is not finite, or an sd is negative.

        Example:
            >>> import numpy as np, numpyro_neb as neb
            >>> standard = neb.Standardizer(np.array([[10.0], [30.0]]))
            >>> standard.moments(np.array([1.0]), np.array([0.5]))  # the sd of the column is 10
            Moments(mean=array([30.]), std=array([5.]))
        """
        mean, std = finite_on_host("mean", mean), finite_on_host("std", std)
        require(np.all(std >= 0), f"std must be at least 0, got {std.min(initial=0)}")
        mean, std = np.broadcast_arrays(mean, std)
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        weights = weights / weights.sum()
        z = mean + nodes.reshape(-1, *[1] * mean.ndim) * std
        x = self.inverse_transform(z)
        center = np.tensordot(weights, x, 1)
        return Moments(center, np.sqrt(np.tensordot(weights, (x - center) ** 2, 1)))

    def standard_errors(self, table: Any, errors: Any) -> Float[np.ndarray, "n d"]:
        """Measurement errors in standardised units: the noise's sd there, to first order.

        Exact for linear columns; of a logarithm, errors / x / std(log x).

        Args:
            table: Real numbers of shape (n, d), as for `transform`.
            errors: Their standard deviations in the units of the columns, positive, of a shape
                that broadcasts to (n, d).

        Raises:
            TypeError: If one does not hold real numbers.
            ValueError: If a number is not finite, an error is not positive, or shapes don't fit.
        """
        z, errors = self.transform(table), finite_on_host("errors", errors)
        require(np.all(errors > 0), f"errors must be positive, got {errors.min(initial=0)}")
        step = 1e-4
        slope = (self.inverse_transform(z + step) - self.inverse_transform(z - step)) / (2 * step)
        require(np.all(slope > 0), "errors need a scaler that is nowhere flat, got a slope of 0")
        return errors / slope

    @property
    def coords(self) -> dict[str, list[str]]:
        """The names as ArviZ coordinates: `to_arviz(mcmc, s.coords, s.dims)`."""
        return {"feature": list(self.names)}

    @property
    def dims(self) -> dict[str, list[str]]:
        """The dimensions of the walk and the jumps for `to_arviz`."""
        return {"x": ["feature"], "y": ["feature"]}

    def _check_scaler(self, x):
        z, wanted = self._scaler.transform(x), "scaler must map each column by itself, upwards,"
        require(z.shape == x.shape, f"{wanted} got {z.shape[1]} columns for {x.shape[1]}")
        for name, before, after in zip(self.names, x.T, z.T, strict=True):
            rises = np.diff(after[np.argsort(before)]) >= -1e-9 * np.ptp(after)
            require(np.all(rises), f"{wanted} which it does not for column {name!r}")
        off = np.abs(self._scaler.inverse_transform(z) - x)
        require(np.all(off <= 1e-6 * x.std(0)), f"{wanted} and back, got {off.max():g} off")

    def _checked(self, table):
        x = np.asarray(check_reals("table", table), float)
        require(x.ndim == 2 and x.size > 0, f"table must have shape (n, d), got {x.shape}")
        return x

    def _check_finite(self, x):
        for i, j in np.argwhere(~np.isfinite(x)):
            where = f"got {x[i, j]} in row {i} of column {self.names[j]!r}: fill or drop the gaps"
            require(False, f"table must be finite, {where}")


class _Scaler:
    """Ours: logarithms of some columns, then means and standard deviations."""

    def __init__(self, names, log):
        self.names, self.log = names, [names.index(name) for name in log]

    def fit(self, x):
        x = self._logs(x)
        self.mean, self.std = x.mean(0), x.std(0)

    def transform(self, x):
        return (self._logs(x) - self.mean) / self.std

    def inverse_transform(self, z):
        x = z * self.std + self.mean
        x[:, self.log] = np.exp(x[:, self.log])
        return x

    def _logs(self, x):
        x = x.copy()
        for i in self.log:
            low = x[:, i].min()
            require(low > 0, f"column {self.names[i]!r} must be positive for its log, got {low}")
        x[:, self.log] = np.log(x[:, self.log])
        return x


class _Foreign:
    """A scaler of scikit-learn's, whose columns stay in the order of the table's."""

    def __init__(self, scaler, names):
        self.scaler, self.names = scaler, list(names)

    def fit(self, x):
        self.scaler.fit(self._frame(x))

    def transform(self, x):
        z = np.asarray(self.scaler.transform(self._frame(x)), float)
        if not hasattr(self.scaler, "output_indices_"):
            return z
        ordered = np.empty_like(z)
        for _, columns, places in self._parts():
            ordered[:, columns] = z[:, places]
        return ordered

    def inverse_transform(self, z):
        if not hasattr(self.scaler, "output_indices_"):
            return np.asarray(self.scaler.inverse_transform(z), float)
        x = z.copy()
        for part, columns, _ in self._parts():
            if part != "passthrough":
                x[:, columns] = part.inverse_transform(z[:, columns])
        return x

    def _parts(self):
        """The parts of a ColumnTransformer, which has no inverse of its own and moves columns."""
        for name, part, columns in self.scaler.transformers_:
            columns = [columns] if isinstance(columns, str | int) else columns
            if not isinstance(columns, slice):
                columns = [self.names.index(c) if isinstance(c, str) else c for c in columns]
            places = self.scaler.output_indices_[name]
            yield part, np.arange(len(self.names))[columns], places

    def _frame(self, x):
        import pandas as pd  # takes long to load

        return pd.DataFrame(x, columns=self.names)
