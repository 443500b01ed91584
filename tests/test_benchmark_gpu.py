"""The benchmark of an accelerator runs on a CPU, with figures that mean nothing there."""

import re
import sys

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny"])
    gpu.main()
    out = capsys.readouterr().out
    assert out.startswith("cpu")
    for dtype in ("float32", "bfloat16"):
        assert re.search(rf"\| 2, {dtype} \| [\d.]+ \w+ \|", out)
    found = re.search(r"([\d.]+) steps of denoising a second, ([\d.]+) updates", out)
    assert float(found[1]) > float(found[2]) > 0
    jumps = re.findall(r"\| (0\.\d) \| 2, 2 \| .* \| (0\.\d+) \| [\d.]+% \|", out)
    assert [sigma for sigma, _ in jumps] == ["0.3", "0.7"]
    # Two steps of training leave the Gaussian's jump: better than none, sigma^2.
    assert all(0 < float(jump) < float(sigma) ** 2 for sigma, jump in jumps)
    assert "NUTS" in out
