"""Single-jump denoising of images, figures 3 and 4 of the paper: `python -m benchmarks.denoising`.

Trains an energy at each sigma, by denoising and then by maximum likelihood, and jumps once from one
noisy copy of each test image. It prints the jump's mean squared error per pixel, as it is and
clipped to [0, 1], the range of its pixels, and their range without one in 10,000 on either side.
With --out, it saves pictures and the energies, as energy_<sigma>.safetensors.
"""

import time

import numpy as np

import numpyro_neb as neb
from benchmarks.images import add_noise, load_images, parser, train_energy, write_picture


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sigmas", type=float, nargs="+", default=[0.3, 0.7])
    arguments.add_argument("--steps", type=int, default=1000, help="training steps")
    arguments.add_argument("--batch", type=int, default=64, help="images in a training step")
    arguments.add_argument("--channels", type=int, nargs="+", default=[48, 96], help="of the U-Net")
    arguments.add_argument("--blocks", type=int, default=1, help="of each level of the U-Net")
    arguments.add_argument("--optimizer", choices=("muon", "adam"), default="muon")
    options = arguments.parse_args()
    network = {"channels": tuple(options.channels), "num_blocks": options.blocks}
    network |= {"optimizer": options.optimizer, "num_updates": options.updates}
    train, test = load_images(options.data)
    print("| sigma | minutes | noisy | jump | clipped | range | all but 1 in 10,000 |")
    print("|---|---|---|---|---|---|---|")
    for sigma in options.sigmas:
        start = time.perf_counter()
        energy = train_energy(train, sigma, options.steps, options.batch, **network)
        minutes = (time.perf_counter() - start) / 60
        noisy = add_noise(test, sigma)
        jump = np.asarray(neb.posterior_mean(energy, noisy))
        errors = [np.mean((z - test) ** 2) for z in (noisy, jump, np.clip(jump, 0, 1))]
        low, high = np.quantile(jump, [1e-4, 1 - 1e-4])
        print(
            f"| {sigma} | {minutes:.1f} | {errors[0]:.4f} | {errors[1]:.5f} | {errors[2]:.5f}"
            f" | [{jump.min():.2f}, {jump.max():.2f}] | [{low:.2f}, {high:.2f}] |",
            flush=True,
        )
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            neb.save(options.out / f"energy_{sigma}.safetensors", energy)
        neb.plots.denoising(test[:12], noisy[:12], jump[:12])
        write_picture(options.out, f"denoising_{sigma}")


if __name__ == "__main__":
    main()
