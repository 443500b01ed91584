"""What the commands read and write is checked before any work."""

import os

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import numpyro_neb as neb
from numpyro_neb import cli as command_line
from numpyro_neb.cli.files import check_out, read_array

ROWS = np.random.default_rng(0).normal(size=(30, 3))
TABLE = pd.DataFrame(ROWS, columns=["a", "b c", "d"])


def written(path, **kinds):
    """Files of one array, in each way that is read."""
    np.save(path / "x.npy", ROWS)
    np.savez(path / "x.npz", some=ROWS)
    np.savez_compressed(path / "two.npz", some=ROWS, other=np.ones(2))
    TABLE.to_csv(path / "x.csv", index=False)
    TABLE.to_csv(path / "x.tsv", index=False, sep="\t")
    TABLE.to_csv(path / "marked.csv", index=False, encoding="utf-8-sig")
    np.save(path / "of_no_suffix.npy", ROWS)
    (path / "of_no_suffix.npy").rename(path / "of_no_suffix")


@pytest.mark.parametrize(
    "name", ["x.npy", "x.npz", "two.npz", "x.csv", "x.tsv", "marked.csv", "of_no_suffix"]
)
def test_one_array_from_each_kind_of_file(name, tmp_path):
    written(tmp_path)
    found = read_array(tmp_path / name, "some" if name == "two.npz" else None)
    # The text of a float64 gives it back up to its last digit.
    np.testing.assert_allclose(found, ROWS, rtol=4e-16, atol=0)


def test_integers_in_text_are_numbers(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n")
    assert read_array(tmp_path / "x.csv").dtype == np.float64


TEXTS = {
    "text.csv": "a,b\n1,2\n3,oops\n",
    "gap.csv": "a,b\n1,2\n3,\n",
    "flag.csv": "a,b\n1,True\n3,False\n",
    "numbered.csv": ",a\n0,1.5\n1,2.5\n",
    "nameless.csv": "1.5,2\n3,4\n",
    "fewer.csv": "a,b\n1,2,3\n4,5,6\n",
    "ragged.csv": "a,b\n1,2\n3,4,5\n",
    "semicolons.csv": "a;b\n1,5;2\n",
    "empty.csv": "",
    "notes.txt": "hello",
    "empty.npy": "",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.csv", "column 'b' must hold numbers, got 'oops' in row 2: leave out"),
        ("gap.csv", "column 'b' must hold numbers, got nothing in row 2"),
        ("flag.csv", "column 'b' must hold numbers, got 'True' in row 1"),
        ("numbered.csv", "got none for column 1: if they number the rows, .*index=False"),
        ("nameless.csv", "must begin with a line of the columns' names, got numbers"),
        ("fewer.csv", "got 2 names for 3 columns"),
        ("ragged.csv", "ragged.csv is not a table in text: .*line 3, saw 3"),
        ("semicolons.csv", "must have commas between its columns, got semicolons"),
        ("empty.csv", "empty.csv is not a table in text"),
        ("notes.txt", r"notes.txt is not a .npy file of numbers, nor .npz, .csv or .tsv"),
        ("empty.npy", "empty.npy is not a .npy file of numbers"),
        ("two.npz", "two.npz holds the arrays 'some', 'other': name one with --array"),
        ("none.npz", "none.npz holds no array"),
        ("cut.npz", "cut.npz is not a .npy file of numbers, nor .npz"),
        ("cut.npy", "cut.npy is not a .npy file of numbers"),
        ("folder", "folder is a folder, not a file"),
        ("missing.npy", "there is no file .*missing.npy"),
    ],
)
def test_what_is_not_an_array(name, message, tmp_path):
    written(tmp_path)
    for file, text in TEXTS.items():
        (tmp_path / file).write_text(text)
    np.savez(tmp_path / "none.npz")
    for kind in ("npy", "npz"):
        (tmp_path / f"cut.{kind}").write_bytes((tmp_path / f"x.{kind}").read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        read_array(tmp_path / name)


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_nobody_is_told_to_allow_pickles(save, tmp_path):
    save(tmp_path / "x", np.array([{}, 1], object))
    (path,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match=r"holds Python objects: write it with np\.save") as error:
        read_array(path)
    assert "pickle" not in str(error.value).replace(str(path), "")


def test_an_array_that_is_not_there(tmp_path):
    written(tmp_path)
    with pytest.raises(ValueError, match=r"two.npz has no array 'none', but 'some', 'other'"):
        read_array(tmp_path / "two.npz", "none")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("draws.csv", r"--out must end in \.nc or \.zarr, got .*draws\.csv"),
        ("missing/draws.nc", "--out: there is no folder .*missing"),
        ("x.npy/draws.nc", "--out: .*x.npy is a file, not a folder"),
        ("folder.nc", "folder.nc is a folder, not a file"),
        ("x.nc", "--out must not be a file that is read"),
    ],
)
def test_where_nothing_can_be_written(out, message, tmp_path):
    (tmp_path / "folder.nc").mkdir()
    written(tmp_path)
    (tmp_path / "x.nc").touch()
    with pytest.raises((ValueError, OSError), match=message):
        check_out(tmp_path / out, (".nc", ".zarr"), tmp_path / "." / "x.nc", None)


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="can't be written to"):
        check_out(tmp_path / "draws.nc", (".nc",))


def test_where_it_can_be_written(tmp_path):
    (tmp_path / "store.zarr").mkdir()  # a run that goes on
    for out in ("draws.nc", "store.zarr", "draws"):
        check_out(tmp_path / out, (".nc", ".zarr"), tmp_path / "x.npy")
    check_out(None, (".png",))


def run(*arguments):
    return command_line.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "x.npy", "--sigma", 1, "--out", "e.npy"), "--out must end in .safetensors"),
        (("evaluate", "e", "x.npy", "--out", "f.txt"), "--out must end in .png or .pdf or .svg"),
        (("sample", "e", "--out", "d.csv"), "--out must end in .nc or .zarr, got d.csv"),
        (("denoise", "e", "x.npy", "--out", "c.txt"), "--out must end in .npy or .csv or .tsv"),
        (("recall", "e", "x.npy", "--out", "m.npy"), "--out must end in .npz, got m.npy"),
        (("denoise", "e", "x.npy", "--out", "x.npy"), "--out must not be a file that is read"),
    ],
)
def test_each_command_looks_before_it_works(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(neb, "load", lambda path: pytest.fail("it has begun to work"))
    written(tmp_path)
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err


def test_denoise_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    energy = neb.MixtureEnergy(jnp.array([[-1.0] * 3, [1.0] * 3]), 0.5)
    neb.save("e.safetensors", energy)
    for file in ("x.npy", "x.csv", "x.npz"):
        assert run("denoise", "e.safetensors", file, "--out", f"{file}.npy") == 0
        expected = neb.posterior_mean(energy, ROWS)
        np.testing.assert_allclose(np.load(f"{file}.npy"), expected, rtol=1e-6)
