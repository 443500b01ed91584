"""Convolutional training steps, ours and PyTorch's: `python -m benchmarks.convolutions`.

Both do a DEEN step with Adam on the same batch, 64 images of 28 x 28 pixels, in networks with the
same weights, checked to have the same loss. They are timed in turns, PyTorch on 1 or all threads,
whichever is faster. Ours is what `fit` dispatches, step by step: XLA:CPU's convolutions are slow
only inside a compiled loop. The last column is our step with `as_matrix_products`, for comparison.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_neb as neb
from benchmarks.timing import Run, bench_module
from benchmarks.training import bare_run
from benchmarks.walk import fastest_threads
from numpyro_neb._internal.convolutions import as_matrix_products
from numpyro_neb.networks.convolutional import ConvNet, UNet

SIGMA, SHAPE, BATCH = 0.3, (28, 28), 64
KEY = jax.random.key(0)


def energies() -> dict[str, neb.NetworkEnergy | neb.ResidualEnergy]:
    """The energies that are timed, by name."""
    paper = ConvNet(SHAPE, (32, 64, 128), stride=2, key=KEY)
    fine, coarse = UNet(SHAPE, key=KEY), UNet(SHAPE, (48, 96), patch_size=2, key=KEY)
    return {
        "ConvNet (32, 64, 128), stride 2": neb.NetworkEnergy(_stirred(paper), SIGMA, SHAPE),
        "UNet (24, 48, 96)": neb.ResidualEnergy(_stirred(fine), SIGMA, SHAPE),
        "UNet (48, 96), patches of 2": neb.ResidualEnergy(_stirred(coarse), SIGMA, SHAPE),
    }


def _stirred(network):
    """Adds noise to the weights: some layers output zero at first, and would not be checked."""
    noise = np.random.default_rng(0)
    move = lambda w: w + 0.02 * noise.normal(size=w.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(lambda w: move(w) if eqx.is_array(w) else w, network)


def torch_network(torch: Any, network: Any) -> tuple[list[Any], Callable]:
    """The weights of one of our networks in PyTorch, and the network as a function of a batch."""
    weights = {
        id(leaf): torch.nn.Parameter(torch.tensor(np.asarray(leaf).squeeze((1, 2))))
        if leaf.ndim == 3
        else torch.nn.Parameter(torch.tensor(np.asarray(leaf)))
        for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array))
    }
    silu, functional = torch.nn.functional.silu, torch.nn.functional

    def conv(layer, x):
        weight, bias = weights[id(layer.weight)], weights[id(layer.bias)]
        size = weight.shape[-1]
        return functional.conv2d(x, weight, bias, stride=layer.stride, padding=size // 2)

    def linear(layer, x):
        return functional.linear(x, weights[id(layer.weight)], weights[id(layer.bias)])

    def scalar(y):
        x = y[:, None]
        for layer in network.convolutions:
            x = silu(conv(layer, x))
        return linear(network.readout, silu(linear(network.hidden, x.flatten(1))))[:, 0]

    def blocks(pairs, x):
        for first, second in pairs:
            x = x + conv(second, silu(conv(first, x)))
        return x

    def image(y):
        patch, kept = network.patch_size, []
        x = conv(network.stem, functional.pixel_unshuffle(y[:, None], patch))
        for pairs, halve in zip(network.down, (*network.halve, None), strict=True):
            x = blocks(pairs, x)
            if halve is not None:
                kept.append(x)
                x = conv(halve, functional.pixel_unshuffle(x, 2))
        for pairs, double in reversed([*zip(network.up, network.double, strict=True)]):
            x = blocks(pairs, functional.pixel_shuffle(conv(double, x), 2) + kept.pop())
        return functional.pixel_shuffle(conv(network.head, x), patch)[:, 0]

    return list(weights.values()), scalar if isinstance(network, ConvNet) else image


def torch_run(torch: Any, energy: Any, batch: np.ndarray) -> Run:
    """DEEN steps in PyTorch, checked to have our loss on the same noise."""
    parameters, network = torch_network(torch, energy.network)
    clean = torch.tensor(batch)

    def loss_of(noise):
        y = (clean + SIGMA * noise).requires_grad_()
        out = network(y)
        if isinstance(energy, neb.ResidualEnergy):
            out = ((y - out) ** 2).sum((1, 2)) / (2 * SIGMA**2)
        (gradient,) = torch.autograd.grad(out.sum(), y, create_graph=True)
        return ((clean - y + SIGMA**2 * gradient) ** 2).sum((1, 2)).mean()

    noise = jax.random.normal(KEY, batch.shape)
    ours = float(neb.denoising_loss(energy, jnp.asarray(batch), KEY))
    np.testing.assert_allclose(loss_of(torch.tensor(np.array(noise))).item(), ours, rtol=1e-3)
    optimizer = torch.optim.Adam(parameters, 1e-3)

    def run(num_steps: int) -> float:
        start = time.perf_counter()
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss_of(torch.randn(batch.shape)).backward()
            optimizer.step()
        return time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch = bench_module("torch")
    if torch is None:
        return
    batch = np.random.default_rng(0).random((BATCH, *SHAPE)).astype(np.float32)
    print("| energy | ours | PyTorch | ours / PyTorch | as matrix products |")
    print("|---|---|---|---|---|")
    for name, energy in energies().items():
        peer = torch_run(torch, energy, batch)
        fastest_threads(torch, peer)
        matrix = eqx.tree_at(lambda e: e.network, energy, _Converted(energy.network))
        runs = (bare_run(energy, jnp.asarray(batch)), peer, bare_run(matrix, jnp.asarray(batch)))
        rounds = [
            [run(options.steps) / options.steps for run in runs] for _ in range(options.repeats)
        ]
        ours, theirs, products = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = [a / b for a, b, _ in rounds]
        print(
            f"| {name} | {ours:.3f} s | {theirs:.3f} s | {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}) | {products:.3f} s |",
            flush=True,
        )


class _Converted(eqx.Module):
    network: Any

    def __call__(self, y):
        return as_matrix_products(self.network)(y)


if __name__ == "__main__":
    main()
