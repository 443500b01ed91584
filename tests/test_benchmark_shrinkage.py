"""The table of packages for normal means: its own rows, with or without the others."""

import re

import numpy as np
import pytest

from benchmarks import shrinkage


@pytest.mark.slow
def test_the_table_has_errors_coverage_and_seconds(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shrinkage", "--repeats", "1", "--effects", "100"])
    monkeypatch.setattr(shrinkage, "bench_module", lambda name: None)
    shrinkage.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["ours, npmle", "ours, scale_mixture", "ours, unimodal"]
    cells = [[float(x) for x in re.findall(r"[\d.]+", " ".join(row[1:]))] for row in rows]
    npmle, scale_mixture, unimodal = map(np.array, cells)
    assert npmle.shape == (6,)  # its intervals are too short to be shown
    for row in (scale_mixture, unimodal):
        errors, coverage = row[:-1:2], row[1:-1:2]
        assert np.all(errors[:3] < 1)  # of 1 for the observations
        # 100 intervals, the most skewed law left out: 90% within four standard errors.
        assert np.all(np.abs(coverage[:4] - 0.9) < 4 * 0.03)
