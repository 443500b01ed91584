"""One accelerator, in a few minutes: `python -m benchmarks.gpu`.

It runs on the device that JAX takes by default, in at most 8 minutes, and prints:

    steps    of the walk on a 3 x 1024 perceptron in 784 dimensions, over the matrix products of one
             gradient alone in a loop of the same length, timed in turns, with 256 and 4,096 chains;
             the network in float32 and in bfloat16
    training steps of denoising a second, and updates of maximum likelihood, of a U-Net
    images   one energy at each of sigma = 0.3 and 0.7, trained for 2 minutes in both stages: the
             squared error a pixel of one jump, clipped to [0, 1], on test images, and the share of
             blank jumps after 2,000 steps from them
    ess      effective draws a second of the default walk over those of NumPyro's NUTS, on an energy
             of scikit-learn's digits

Images are those of the file given by --data, for example MNIST's, or else scikit-learn's digits.
With --tiny it shows that all parts run, in a minute on a CPU; its figures mean nothing.
"""

import functools
from collections.abc import Callable
from time import perf_counter as clock
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_neb as neb
from benchmarks import walk_ess
from benchmarks.images import add_noise, load_images, parser, train_energy
from benchmarks.timing import Run, Settings, compared, loop_run, pairs, time_of, walk_run


class Size(NamedTuple):
    """How much to do.

    Attributes:
        dim: Of the perceptron's input.
        width: Of the perceptron.
        chains: Numbers of chains.
        seconds: Of training for each sigma.
        channels: Of the U-Net.
        batch: Images in a step of training.
        walk: Steps of the walk from test images.
        settings: Of the other parts.
    """

    dim: int = 784
    width: int = 1024
    chains: tuple[int, ...] = (256, 4096)
    seconds: float = 120.0
    channels: tuple[int, ...] = (48, 96)
    batch: int = 256
    walk: int = 2000
    settings: Settings = Settings(seconds=0.5, repeats=5, num_train=6000, num_steps=40_000)


TINY = Size(8, 16, (2,), 0.0, (4, 8), 16, 20, Settings(0.02, 1, 60, 400, 40, quick=True))


class Rounded(eqx.Module):
    """A network in another precision, between float32 arrays."""

    network: Callable

    def __init__(self, network: Callable, dtype: Any):
        cast = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf  # noqa: E731
        self.network = jax.tree.map(cast, network)

    def __call__(self, y):
        """The network of y."""
        dtype = self.network.layers.layers[0].weight.dtype  # pyright: ignore
        return self.network(y.astype(dtype)).astype(y.dtype)


def steps(size: Size) -> None:
    """The walk's step, and the matrix products of its gradient."""
    print("\n| chains, network | a step | its matrix products | ratio | target | met |")
    print("|---|---|---|---|---|---|")
    key, shape = jax.random.key(0), (size.dim,)
    network = neb.networks.MLP(shape, width_size=size.width, depth=3, key=key)
    for chains in size.chains:
        for dtype in (jnp.float32, jnp.bfloat16):
            energy = neb.ResidualEnergy(Rounded(network, dtype), 0.3, shape)
            ours = walk_run(neb.WalkJumpKernel(energy), chains)
            found = pairs(ours, products(network, chains, dtype), size.settings)
            name = f"{chains:,}, {jnp.dtype(dtype).name}"
            compared(name, found, "").show(size.settings)


def products(network: Any, chains: int, dtype: Any) -> Run:
    """Seconds of as many times all matrix products of a gradient, forwards and backwards."""
    weights = [layer.weight.astype(dtype) for layer in network.layers.layers]
    around = [weight.T for weight in weights] + weights[::-1]
    y = jax.random.normal(jax.random.key(2), (chains, weights[0].shape[1])).astype(dtype)

    def gradient(y):
        # Neither zeros, which are faster to multiply, nor too large.
        after = functools.reduce(jnp.matmul, around, y)
        return after * jax.lax.rsqrt(jnp.mean(after**2))

    return loop_run(gradient, y)


def rates(images: np.ndarray, size: Size) -> list[float]:
    """Steps of denoising and updates of maximum likelihood in a second, once compiled."""
    times: list[tuple[int, float]] = []  # of every hundredth step, in both stages
    count = 200 if size.settings.quick else 400
    trained(images, 0.3, [count, 200], size, lambda done, _: times.append((done, clock())))
    found = []
    for stage in (times[: count // 100], times[count // 100 :]):
        (first, begin), (last, end) = stage[0], stage[-1]
        found.append((last - first) / (end - begin))
    return found


def trained(
    images: np.ndarray,
    sigma: float,
    counts: list[int],
    size: Size,
    callback: Callable | None = None,
) -> neb.ResidualEnergy:
    """An energy of a U-Net after so many steps of denoising and updates."""
    network: Any = {"batch_size": size.batch, "channels": size.channels, "callback": callback}
    return train_energy(images, sigma, counts[0], num_updates=counts[1], **network)


def image_energies(images: np.ndarray, test: np.ndarray, size: Size) -> None:
    """Both stages, half of the time each."""
    rate, updates = rates(images, size)
    print(f"\na U-Net of {size.channels} channels, {size.batch} images of {images.shape[1:]}:"
          f" {rate:.1f} steps of denoising a second, {updates:.2f} updates of maximum likelihood"
          " (64 chains, 10 steps)", flush=True)  # fmt: skip
    print("\n| sigma | steps, updates | trained in | jump a pixel | blank |")
    print("|---|---|---|---|---|")
    counts = [max(2, int(size.seconds / 2 * speed)) for speed in (rate, updates)]
    least = np.quantile(images.reshape(len(images), -1).mean(1), 0.001)
    for sigma in (0.3, 0.7):
        begin = clock()
        energy = trained(images, sigma, counts, size)
        seconds = clock() - begin
        noisy = add_noise(test, sigma)
        jump = np.clip(np.asarray(neb.posterior_mean(energy, noisy)), 0, 1)
        kernel = neb.WalkJumpKernel(energy, num_steps=size.walk)
        start = noisy[:200]
        state = kernel.init(jax.random.split(jax.random.key(3), len(start)), 0, start)
        x = np.asarray(jax.jit(kernel.sample)(state).draw["x"])
        blank = np.mean(x.reshape(len(x), -1).mean(1) < least)
        print(f"| {sigma} | {counts[0]:,}, {counts[1]:,} | {time_of(seconds)} |"
              f" {np.mean((jump - test) ** 2):.5f} | {blank:.1%} |", flush=True)  # fmt: skip


def effective(size: Size) -> None:
    """The default walk and NUTS on the digits' energy at sigma 0.3."""
    settings = size.settings
    energy = walk_ess.digits_energy(0.3, settings.num_train)
    walk = walk_ess.walk_chains(energy, settings.num_steps)
    nuts = walk_ess.nuts_chains(energy, max(20, settings.num_steps // 40))
    print(f"\neffective draws a second: {walk.per_second:.3g}, NUTS {nuts.per_second:.3g}:"
          f" {walk.per_second / nuts.per_second:.2f} times as many", flush=True)  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tiny", action="store_true", help="a minute, to see that it runs")
    options = arguments.parse_args()
    size = TINY if options.tiny else Size()
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}", flush=True)
    begin = clock()
    steps(size)
    images, test = load_images(options.data)
    image_energies(images, test[:2000], size)
    effective(size)
    print(f"\n{clock() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
