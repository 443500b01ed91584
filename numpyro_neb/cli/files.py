"""The files that the commands read and write, checked before any work."""

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from numpyro_neb._internal.atomic_files import write_whole
from numpyro_neb._internal.checks import require, short

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
# The first bytes of .npy and .npz files.
_STARTS = (b"\x93NUMPY", b"PK")


def check_file(path: Path) -> None:
    """Raises an OSError unless there is a file of that name.

    Raises:
        FileNotFoundError: If there is nothing.
        IsADirectoryError: If it is a folder.
    """
    require(path.exists(), f"there is no file {path}", FileNotFoundError)
    require(not path.is_dir(), f"{path} is a folder, not a file", IsADirectoryError)


def check_out(out: Path | None, suffixes: tuple[str, ...], *inputs: Path | None) -> None:
    """Raises an error unless a command can write to `out`; nothing is written.

    Args:
        out: What `--out` names, if anything.
        suffixes: Those that the command writes, each with its dot; none at all is fine too.
        inputs: The files that it reads, which must not be overwritten.

    Raises:
        ValueError: If it has another suffix, or is one of the inputs.
        OSError: If its folder is not there or can't be written to, or a folder has its name.
    """
    if out is None:
        return
    known = out.suffix in ("", *suffixes)
    require(known, f"--out must end in {' or '.join(suffixes)}, got {out}")
    folder = out.parent
    require(folder.exists(), f"--out: there is no folder {folder}", FileNotFoundError)
    require(folder.is_dir(), f"--out: {folder} is a file, not a folder", NotADirectoryError)
    allowed = os.access(folder, os.W_OK)
    require(allowed, f"--out: the folder {folder} can't be written to", PermissionError)
    free = out.suffix == ".zarr" or not out.is_dir()
    require(free, f"--out: {out} is a folder, not a file", IsADirectoryError)
    read = [path for path in inputs if path is not None and out.resolve() == path.resolve()]
    require(not read, f"--out must not be a file that is read, got {out}")


def holds_arrays(path: Path) -> bool:
    """Whether a file is, by its name or its first bytes, one that `read_array` reads."""
    if path.suffix in (".npy", ".npz", *_SEPARATORS):
        return True
    with path.open("rb") as file:
        return file.read(6).startswith(_STARTS)


def read_array(path: Path, name: str | None = None) -> np.ndarray:
    """The array of a .npy file, left on disk, of a .npz file, or of a table in text.

    Args:
        path: The file. A .csv or .tsv file has a line of names, and then numbers only.
        name: Which of a .npz file's arrays; not needed if it is the only one.

    Raises:
        OSError: If it can't be read.
        ValueError: If it is of another kind, holds several arrays and none is named, or has
            text or gaps among its numbers.
    """
    check_file(path)
    if path.suffix in _SEPARATORS:
        return _read_table(path, _SEPARATORS[path.suffix])
    require(holds_arrays(path), f"{path} is not a .npy file of numbers, nor .npz, .csv or .tsv")
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return np.load(path, mmap_mode="r", allow_pickle=False)
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            names = archive.files
            name = names[0] if name is None and len(names) == 1 else name
            array: Any = archive[name] if name in names else None
    except Exception as error:  # a damaged archive raises errors of many kinds
        text = str(error)
        if "allow_pickle" in text or "Python objects" in text:
            text = "it holds Python objects: write it with np.save(path, np.asarray(x, float))"
        raise ValueError(f"{path} is not a .npy file of numbers, nor .npz: {text}") from None
    require(names, f"{path} holds no array")
    listed = ", ".join(map(short, names))
    require(name is not None, f"{path} holds the arrays {listed}: name one with --array")
    require(name in names, f"{path} has no array {name!r}, but {listed}")
    require(isinstance(array, np.ndarray), f"{name!r} in {path} is not an array")
    return array


def write_array(out: Path, array: np.ndarray, source: Path) -> None:
    """Writes an array whole, as .npy or, to a .csv or .tsv file, as a table.

    Args:
        out: The file, whose suffix says what is written.
        array: The array; a table has shape (n, d).
        source: The file that it comes from: the names of a table's columns, or else x0, x1, ...

    Raises:
        OSError: If it can't be written.
    """
    if out.suffix not in _SEPARATORS:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return write_whole(out, buffer.getvalue())
    names = [f"x{i}" for i in range(array.shape[1])]
    if source.suffix in _SEPARATORS:
        with source.open(newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file, delimiter=_SEPARATORS[source.suffix]))
    text = io.StringIO()
    rows = csv.writer(text, delimiter=_SEPARATORS[out.suffix], lineterminator="\n")
    rows.writerow(name.strip() for name in names)
    rows.writerows(array.astype(str).tolist())  # as few digits as tell float32 apart
    return write_whole(out, text.getvalue().encode())


def _read_table(path, separator):
    """The numbers of a table in text; the error says where anything else is."""
    import pandas as pd  # takes long to load

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=separator)
            names = next(lines, [])
            first = next(lines, names)
        table = pd.read_csv(path, sep=separator, skipinitialspace=True, encoding="utf-8-sig")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a table in text: {error}") from None
    wanted = f"{path} must begin with a line of the columns' names"
    require(not all(map(_is_number, names)), f"{wanted}, got numbers")
    unnamed = [i for i, name in enumerate(names, 1) if not name.strip()]
    index = "if they number the rows, write the table without them (index=False in pandas)"
    require(not unnamed, f"{wanted}, got none for column {min(unnamed, default=0)}: {index}")
    several = len(names) > 1 or ";" not in names[0]
    require(several, f"{path} must have commas between its columns, got semicolons")
    fits = len(names) == len(first)
    require(fits, f"{wanted}, got {len(names)} names for {len(first)} columns")
    for name, column in table.items():
        numbers: Any = pd.to_numeric(column, errors="coerce")
        wrong = numbers.isna() | pd.api.types.is_bool_dtype(column)
        if wrong.any():
            row = int(np.argmax(wrong))
            value = column.iloc[row]
            got = "nothing" if pd.isna(value) else short(str(value))
            where = f"{path}: column {name!r} must hold numbers, got {got} in row {row + 1}"
            raise ValueError(f"{where}: leave out the column or the row, or fill it in")
    return table.to_numpy(float)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
