"""Peak memory of long runs: `python -m benchmarks.memory`.

Each row is a separate process. `fit` trains on a memory-mapped file, small and large; `stream`
writes draws to a Zarr store, few and many; `mcmc.run` holds the same number in memory. Printed:

    MB          of the data, or of the draws
    peak RSS    the process's largest resident memory, including pages of mapped files, which the
                system reclaims when it needs them
    anonymous   the largest memory not backed by a file, which it can't reclaim
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DIM, CHAINS, STEPS = 1024, 4, 2000
JOBS = [("fit", 40), ("fit", 4000), ("stream", 40), ("stream", 400), ("run", 40), ("run", 400)]


def status(field: str) -> float:
    """A field of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


class PeakOfAnonymous(threading.Thread):
    """Looks at the process's anonymous memory a hundred times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        """Looks until the process ends."""
        while True:
            self.peak = max(self.peak, status("RssAnon"))
            time.sleep(0.01)


def fit(megabytes: int, folder: Path) -> None:
    """Trains an MLP on a file of zeros, which takes no room on the disk."""
    import jax
    import numpy as np

    import numpyro_neb as neb

    shape = (megabytes * 2**20 // (4 * DIM), DIM)
    data = np.lib.format.open_memmap(folder / "data.npy", "w+", np.float32, shape)
    network = neb.networks.MLP((DIM,), width_size=64, depth=2, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, 0.5, (DIM,))
    settings = {"num_steps": STEPS, "batch_size": 128, "progress_bar": False}
    neb.fit(energy, data, key=jax.random.key(1), **settings)


def sample(megabytes: int, folder: Path, to_disk: bool) -> None:
    """Walks on a kernel density in DIM dimensions; a draw is a y and an x."""
    import jax
    import numpy as np
    from numpyro.infer import MCMC

    import numpyro_neb as neb

    energy = neb.MixtureEnergy(np.random.default_rng(0).normal(size=(4, DIM)), 0.5)
    settings = {"num_warmup": 10, "num_chains": CHAINS, "chain_method": "vectorized"}
    draws = megabytes * 2**20 // (2 * 4 * DIM * CHAINS)
    kernel = neb.WalkJumpKernel(energy)
    mcmc = MCMC(kernel, num_samples=draws, progress_bar=False, **settings)
    if to_disk:
        neb.stream(mcmc, jax.random.key(0), folder / "draws.zarr", progress_bar=False)
    else:
        mcmc.run(jax.random.key(0))
        mcmc.get_samples()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", choices=["fit", "stream", "run"], help="one, in this process")
    parser.add_argument("--megabytes", type=int)
    options = parser.parse_args()
    if options.job is None:
        print("| job | MB | peak RSS, MB | anonymous, MB |\n|---|---|---|---|", flush=True)
        for job, megabytes in JOBS:
            command = [sys.executable, "-m", "benchmarks.memory", "--job", job]
            subprocess.run([*command, "--megabytes", str(megabytes)], check=True)
        return
    watch = PeakOfAnonymous()
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        if options.job == "fit":
            fit(options.megabytes, Path(folder))
        else:
            sample(options.megabytes, Path(folder), options.job == "stream")
    peak = status("VmHWM")
    print(f"| {options.job} | {options.megabytes} | {peak:.0f} | {watch.peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
