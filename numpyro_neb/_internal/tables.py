"""Tables of pandas and xarray by their content; neither is imported here."""

import sys
from typing import Any

import numpy as np


def as_table(value: Any) -> tuple[str, list[tuple[str, Any]]] | None:
    """What a table is, and its columns by name, or None for any other object."""
    library = type(value).__module__.partition(".")[0]
    module: Any = sys.modules.get(library)
    if library == "pandas" and module is not None:
        return _of_pandas(module, value)
    if library == "xarray" and module is not None:
        return _of_xarray(module, value)
    return None


def _of_pandas(pandas, value):
    if isinstance(value, pandas.DataFrame):
        inside = [(" columns", value.columns), (" index", value.index)]
        for i, name in enumerate(value.columns.tolist()):
            inside += _column(pandas, f" column {name!r}", value.iloc[:, i])
        return f"DataFrame of {len(value)}", inside
    if isinstance(value, pandas.Series):
        inside = [(" name", value.name), (" index", value.index)]
        return "Series", _column(pandas, "", value) + inside
    if isinstance(value, pandas.Index):
        inside = [("", pandas.util.hash_pandas_object(value).to_numpy())]
        inside.append((" names", list(value.names)))
        return f"{value.inferred_type} index", inside + _type("", value.dtype)
    return None


def _column(pandas, place, series):
    return [(place, _values(pandas, series)), *_type(place, series.dtype)]


def _values(pandas, series):
    numbers = isinstance(series.dtype, np.dtype) and not series.dtype.hasobject
    if numbers:
        return series.to_numpy()
    return pandas.util.hash_pandas_object(series, index=False).to_numpy()


def _type(place, dtype):
    """A column's type, with its categories in their order."""
    if not hasattr(dtype, "categories"):
        return [(f"{place} type", str(dtype))]
    categories = [dtype.categories.tolist(), dtype.ordered]
    return [(f"{place} categories", categories)]


def _of_xarray(xarray, value):
    if isinstance(value, xarray.DataArray):
        own = [("", value.variable), (" name", value.name)]
        return "DataArray", own + _variables(value.coords)
    if isinstance(value, xarray.Dataset):
        return "Dataset", _variables(value.variables)
    if isinstance(value, xarray.Variable):
        inside = [("", np.asarray(value.values)), (" attributes", dict(value.attrs))]
        return f"Variable of {list(value.dims)}", inside
    return None


def _variables(variables):
    pairs = [(name, variables[name]) for name in sorted(variables, key=str)]
    return [(f" variable {name!r}", getattr(one, "variable", one)) for name, one in pairs]
