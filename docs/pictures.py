"""The pictures of the site: `python docs/pictures.py` draws them all into docs/pictures.

Every setting is here. It takes some minutes on two cores; names as arguments draw those alone.
"""

import argparse
import base64
import io
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpyro.infer import MCMC
from PIL import Image
from scipy.stats import chi
from sklearn.datasets import load_digits, load_wine, make_moons
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import numpyro_neb as neb

FOLDER = Path(__file__).parent / "pictures"
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
# Which of its pictures a tutorial is known by.
THUMBNAILS = {
    "01_quickstart": 2, "02_learned_prior": 0, "03_empirical_bayes": 1, "04_memories": 5,
    "05_gibbs": 0, "06_levels": 0,
}  # fmt: skip


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The demo's split: 1,500 digits of 8 x 8 pixels to train on, 297 held out."""
    images = (load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16).astype(np.float32)
    train, held_out = train_test_split(images, test_size=297, random_state=0)
    return np.asarray(train), np.asarray(held_out)


@cache
def denoised(sigma: float) -> neb.ResidualEnergy:
    """The demo's energy of the digits at sigma, after the first stage."""
    train, _ = digits()
    network = neb.networks.MLP((8, 8), width_size=256, depth=3, key=jax.random.key(0))
    start = neb.ResidualEnergy(network, sigma, (8, 8), loc=train.mean(0), scale=train.std())
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 6000), weight_decay=1.0)
    settings = {"num_steps": 6000, "batch_size": 128, "optimizer": optimizer}
    return neb.fit(start, train, key=jax.random.key(0), **settings).energy


@cache
def energy(sigma: float) -> neb.ResidualEnergy:
    """That after the second."""
    settings = {"num_steps": 1000, "batch_size": 128, "objective": neb.MaximumLikelihood()}
    return neb.fit(denoised(sigma), digits()[0], key=jax.random.key(1), **settings).energy


STAGES = {"denoising alone": denoised, "denoising, then maximum likelihood": energy}


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def circle(dim: int, n: int) -> np.ndarray:
    """Points of the unit circle in the first two of dim coordinates, evenly spaced."""
    angles = np.arange(n) * 2 * np.pi / n
    x = np.zeros((n, dim), np.float32)
    x[:, 0], x[:, 1] = np.cos(angles), np.sin(angles)
    return x


def off_circle(points: np.ndarray) -> np.ndarray:
    radius = np.hypot(points[:, 0], points[:, 1])
    return np.hypot(radius - 1, np.linalg.norm(points[:, 2:], axis=1))


def landscape() -> Figure:
    """Smoothed densities of the circle at two sigmas, and a walk with its jumps on each."""
    figure, axes = plt.subplots(1, 2, figsize=(6.2, 3.2), layout="constrained")
    for ax, sigma in zip(axes, (0.25, 0.6), strict=True):
        exact = neb.MixtureEnergy(circle(2, 12), sigma)
        kernel = neb.WalkJumpKernel(exact, num_steps=3)
        mcmc = MCMC(kernel, num_warmup=20, num_samples=25, progress_bar=False)
        mcmc.run(jax.random.key(3))
        walk = mcmc.get_samples()["y"]
        neb.plots.landscape(exact, ((-2.2, 2.2), (-2.2, 2.2)), walk=walk, ax=ax)
        ax.plot(*circle(2, 12).T, "k.", markersize=4)
        ax.set(title=rf"$\sigma$ = {sigma}", xticks=[], yticks=[])
    axes[0].get_legend().remove()
    return figure


def spheres() -> Figure:
    """The length of the noise in units of sigma sqrt(d), and two i-spheres in three regimes."""
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.1), width_ratios=[1.7, 1, 1, 1])
    grid = np.linspace(0.01, 2.5, 500)
    for dim in (1, 8, 64, 784):
        density = chi.pdf(grid, dim, scale=1 / np.sqrt(dim))
        axes[0].plot(grid, density / density.max(), label=f"d = {dim}")
    axes[0].set(xlabel=r"$\|Y - X\| \,/\, (\sigma\sqrt{d})$", yticks=[], xlim=(0, 2.5))
    axes[0].legend(frameon=False, fontsize=8)
    regimes = [(0.7, r"$\sigma < \chi$: apart"), (1.4, r"$\chi \leq \sigma < 2\chi$: overlapping"),
               (2.3, r"$\sigma \geq 2\chi$: contained")]  # fmt: skip
    for ax, (sigma, title) in zip(axes[1:], regimes, strict=True):
        for centre, colour in ((-1, "C0"), (1, "C3")):
            ax.add_patch(Circle((centre, 0), sigma, fill=False, color=colour))
            ax.plot(centre, 0, ".", color=colour)
        ax.set(xlim=(-3.4, 3.4), ylim=(-2.6, 2.6), aspect="equal")
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    figure.tight_layout()
    return figure


def overlaps() -> Figure:
    """The overlaps of all pairs of training digits."""
    neb.plots.overlaps(neb.sphere_overlaps(digits()[0]))
    return plt.gcf()


def manifold() -> Figure:
    """The noise takes Y off a circle to a distance that grows with d; the jump brings it back."""
    sigma, n = 0.3, 4000
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for colour, dim in zip(("C0", "C1", "C2"), (2, 8, 32), strict=True):
        x = circle(dim, n)
        y = x + sigma * noise(x.shape)
        # The circle's kernel density: 200 points, each nearer to the next than sigma / 9.
        jump = np.asarray(neb.posterior_mean(neb.MixtureEnergy(circle(dim, 200), sigma), y))
        if dim == 2:
            axes[0].plot(*y[::8].T, ".", color="0.7", markersize=3, label="$y$")
            axes[0].plot(*jump[::8].T, ".", color="C3", markersize=2, label=r"jump $\hat x(y)$")
        bins = np.linspace(0, 2.5, 100)
        axes[1].hist(off_circle(y), bins, histtype="step", color=colour, label=f"$y$, d = {dim}")
        label = "jumps, all three" if dim == 2 else None
        axes[1].hist(off_circle(jump), bins, color="C3", alpha=0.3, label=label)
    axes[0].set(aspect="equal", title="d = 2")
    axes[0].legend(frameon=False, loc="center", fontsize=8, markerscale=3)
    axes[1].set(xlabel="distance from the circle", yticks=[], ylim=(0, 500))
    axes[1].legend(frameon=False, fontsize=8)
    return figure


def denoising() -> Figure:
    """One jump from noisy held-out digits, sigma = 0.3."""
    clean = digits()[1][:12]
    noisy = clean + 0.3 * noise(clean.shape)
    neb.plots.denoising(clean, noisy, neb.posterior_mean(energy(0.3), noisy))
    return plt.gcf()


def walks() -> Figure:
    """Chains of the paper's walk and of the default one: 100 gradients between two pictures."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 2.9), layout="constrained")
    start = digits()[1][:3] + 0.3 * noise((3, 8, 8))
    walks = {"the paper's walk": neb.integrators.ULA.paper(), "BAOAB": neb.integrators.BAOAB()}
    for ax, (name, integrator) in zip(axes, walks.items(), strict=True):
        kernel = neb.WalkJumpKernel(energy(0.3), integrator=integrator, num_steps=100)
        settings = {"num_chains": 3, "chain_method": "vectorized", "progress_bar": False}
        mcmc = MCMC(kernel, num_warmup=0, num_samples=24, **settings)
        mcmc.run(jax.random.key(0), init_params=jnp.asarray(start))
        neb.plots.walk_jump(mcmc.get_samples(group_by_chain=True)["x"], ax=ax)
        ax.set(title=name, xlabel="")
    return figure


def walk_jump() -> Figure:
    """The jumps of four chains on the kernel density of the digits, 200 gradients apart."""
    kernel = neb.WalkJumpKernel(neb.MixtureEnergy(digits()[0], 0.4), num_steps=200)
    settings = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=5, num_samples=20, **settings)
    mcmc.run(jax.random.key(0))
    neb.plots.walk_jump(mcmc.get_samples(group_by_chain=True)["x"])
    return plt.gcf()


def shares() -> Figure:
    """The classes of 3,000 jumps of the walk after each stage, and of jumps from noisy digits."""
    pixels, labels = load_digits(return_X_y=True)
    train, _, labels, _ = train_test_split(pixels / 16, labels, test_size=297, random_state=0)
    classifier = SVC().fit(train, labels)
    every = np.concatenate(digits())
    jumps = {"data": neb.posterior_mean(energy(0.3), every + 0.3 * noise(every.shape))}
    for name, trained in STAGES.items():
        kernel = neb.WalkJumpKernel(trained(0.3), num_steps=100)
        settings = {"num_chains": 100, "chain_method": "vectorized", "progress_bar": False}
        mcmc = MCMC(kernel, num_warmup=20, num_samples=30, **settings)
        mcmc.run(jax.random.key(0))
        jumps[f"walk: {name}"] = mcmc.get_samples()["x"]
    figure, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
    styles = ({"color": "0.7"}, {"color": "C3"}, {"color": "C0"})
    for i, ((name, x), style) in enumerate(zip(jumps.items(), styles, strict=True)):
        found = np.bincount(classifier.predict(np.reshape(x, (-1, 64))), minlength=10) / len(x)
        ax.bar(np.arange(10) + 0.28 * (i - 1), found, 0.28, label=name, **style)
    ax.set(xlabel="digit", ylabel="share of the jumps", xticks=range(10))
    ax.legend(frameon=False)
    return figure


def stages() -> Figure:
    """Chains after each stage: 200 gradients between two pictures, the first 2,000 left out."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 2.9), layout="constrained")
    start = digits()[1][:3] + 0.3 * noise((3, 8, 8))
    for ax, (name, trained) in zip(axes, STAGES.items(), strict=True):
        kernel = neb.WalkJumpKernel(trained(0.3), num_steps=200)
        settings = {"num_chains": 3, "chain_method": "vectorized", "progress_bar": False}
        mcmc = MCMC(kernel, num_warmup=10, num_samples=24, **settings)
        mcmc.run(jax.random.key(0), init_params=jnp.asarray(start))
        neb.plots.walk_jump(mcmc.get_samples(group_by_chain=True)["x"], ax=ax)
        ax.set(title=name, xlabel="")
    return figure


def memories() -> Figure:
    """The memories of 300 training digits at sigma = 0.4, with their basins."""
    found = neb.memories.find_memories(energy(0.4), digits()[0][:300])
    neb.plots.memories(found)
    return plt.gcf()


def moons() -> Figure:
    """Smoothed densities of two moons at three sigmas, with the data."""
    x = make_moons(400, noise=0.05, random_state=0)[0].astype(np.float32)
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained")
    for ax, sigma in zip(axes, (0.05, 0.15, 0.4), strict=True):
        neb.plots.landscape(neb.MixtureEnergy(x, sigma), data=x, ax=ax)
        ax.set(title=rf"$\sigma$ = {sigma}", xticks=[], yticks=[])
        ax.get_legend().remove()
    return figure


def wine() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A table of 13 columns, each of mean 0 and sd 1: random halves, and the columns' names."""
    table = load_wine()
    x = (table.data - table.data.mean(0)) / table.data.std(0)
    halves = train_test_split(x.astype(np.float32), test_size=0.5, random_state=0)
    return np.asarray(halves[0]), np.asarray(halves[1]), list(table.feature_names)


def walk_on_wine() -> MCMC:
    """On the kernel density of one half of the table, 40 chains."""
    kernel = neb.WalkJumpKernel(neb.MixtureEnergy(wine()[0], 0.5), num_steps=20)
    settings = {"num_chains": 40, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=50, num_samples=100, **settings)
    mcmc.run(jax.random.key(0))
    return mcmc


def marginals() -> Figure:
    """The columns of the table, and the jumps of the walk."""
    x, _, names = wine()
    data = neb.to_arviz(walk_on_wine(), {"feature": names}, {"x": ["feature"]})
    neb.plots.marginals(x, data)
    return plt.gcf()


def energy_transitions() -> Figure:
    """Of the same walk."""
    neb.plots.energy_transitions(neb.to_arviz(walk_on_wine()))
    return plt.gcf()


def evaluation() -> Figure:
    """The kernel density of half of the table, against the other half."""
    train, held_out, _ = wine()
    found = neb.evaluate(neb.MixtureEnergy(train, 0.5), held_out, key=jax.random.key(0))
    neb.plots.evaluation(found)
    return plt.gcf()


def effects() -> neb.MixtureFit:
    """A thousand effects with unequal standard errors, eight in ten of them zero."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(1000) < 0.8, 0.0, 2 * rng.normal(size=1000))
    sigma = rng.uniform(0.3, 1.5, 1000)
    return neb.fit_mixture(x + sigma * rng.normal(size=1000), sigma, prior="scale_mixture")


def shrinkage() -> Figure:
    """Of the effects."""
    neb.plots.shrinkage(effects())
    return plt.gcf()


def prior() -> Figure:
    """Of the effects."""
    neb.plots.prior(effects())
    return plt.gcf()


def fdr() -> Figure:
    """Of the effects."""
    neb.plots.fdr(effects())
    return plt.gcf()


def recall_paths() -> Figure:
    """The flow from five noisy digits to their memories, on the kernel density of 100."""
    exact = neb.MixtureEnergy(digits()[0][:100], 0.35)
    cues = digits()[0][:5] + 0.35 * noise((5, 8, 8))
    neb.plots.recall_paths(neb.memories.follow(exact, cues, np.linspace(0, 6, 12)))
    return plt.gcf()


def narrower() -> Figure:
    """The sd of the jumps as a share of that of X, against sigma as a share of it."""
    figure, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    ratio = np.linspace(0.01, 2, 100)
    ax.plot(ratio, 1 / np.sqrt(1 + ratio**2), color="0.6", label="Gaussian, in closed form")
    flat = digits()[0].reshape(-1, 64)
    # Two modes at -1 and 1 of width 0.2.
    modes = jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.04)
    laws: dict[str, Callable] = {
        "Gaussian": lambda s: neb.MixtureEnergy(jnp.zeros((1, 1)), s, None, jnp.ones((1, 1, 1))),
        "two modes": lambda s: neb.MixtureEnergy(modes[0], s, None, modes[1]),
        "digits (kernel density)": lambda s: neb.MixtureEnergy(flat, s),
    }
    for marker, (name, law) in zip("os^", laws.items(), strict=True):
        sd = float(jnp.sqrt(jnp.mean(law(1.0).scale ** 2)))
        ratios = np.array([0.1, 0.25, 0.5, 0.75, 1, 1.5, 2])
        found = []
        for sigma in ratios * sd:
            y = law(sigma).sample(jax.random.key(0), (20_000,))
            x = np.asarray(neb.posterior_mean(law(sigma), y, progress_bar=False))
            found.append(np.sqrt(x.var(0).mean()) / sd)
        ax.plot(ratios, found, marker, label=name)
    ax.set(xlabel=r"$\sigma \,/\, \mathrm{sd}(X)$", ylim=(0, 1.05))
    ax.set_ylabel(r"$\mathrm{sd}(\hat x(Y)) \,/\, \mathrm{sd}(X)$")
    ax.legend(frameon=False, loc="lower left")
    return figure


def inverse_problems() -> Figure:
    """Digits, what is seen of them, and their posteriors: means, sds and three draws."""
    train, held_out = (x.reshape(-1, 64) for x in digits())
    network = neb.networks.MLP((64,), width_size=256, depth=3, conditional=True,
                               key=jax.random.key(0))  # fmt: skip
    start = neb.ConditionalEnergy(network, (64,), (0.05, 3.0), loc=train.mean(0), scale=0.3)
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 5000), weight_decay=1.0)
    settings = {"num_steps": 5000, "batch_size": 128, "optimizer": optimizer}
    family = neb.fit(start, train, key=jax.random.key(1), **settings).energy
    one = np.convolve([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
    rows = sum(w * np.eye(8, k=k) for k, w in zip(range(-2, 3), one, strict=True))
    blur = np.kron(rows, rows).astype(np.float32)
    kept = np.sort(np.random.default_rng(0).permutation(64)[:32])

    def model(number, seen):
        x = numpyro.sample("x", neb.SmoothedDensity(family.at(0.07)))
        sd = numpyro.sample("sd", dist.HalfNormal(0.2))
        loc = (blur @ x, x[kept], 3 * jax.nn.softplus(20 * x) / 20 + 0.2)[number]
        law = dist.Poisson(loc) if number == 2 else dist.Normal(loc, sd)
        numpyro.sample("seen", law.to_event(1), obs=seen)

    truth, hidden = held_out[[3, 10, 24]], np.full(64, np.nan)
    rng = np.random.default_rng(1)
    blurred = blur @ truth[0] + 0.1 * noise((64,))
    half = truth[1][kept] + 0.1 * noise((32,))
    counts = rng.poisson(3 * truth[2] + 0.2)
    hidden[kept] = half
    figure, axes = plt.subplots(3, 7, figsize=(7.2, 3.3), layout="constrained")
    shown = (blurred, hidden, counts / 3)
    names = ("blurred", "half of it", "photons")
    for number, seen in enumerate((blurred, half, counts)):
        kernel = neb.LevelsKernel(partial(model, number))
        mcmc = MCMC(kernel, num_warmup=5, num_samples=60, progress_bar=False)
        mcmc.run(jax.random.key(2), jnp.asarray(seen))
        x, jump = (mcmc.get_samples()[name] for name in ("x", "x_jump"))
        row = [truth[number], shown[number], jump.mean(0), x.std(0), *jump[-1:-32:-12]]
        titles = ("truth", "seen", "mean", "sd", "draws", "", "")
        for ax, image, title in zip(axes[number], row, titles, strict=True):
            high = 0.4 if title == "sd" else 1
            ax.imshow(np.asarray(image).reshape(8, 8), cmap="gray", vmin=0, vmax=high)
            ax.set(xticks=[], yticks=[], title=title if number == 0 else "", facecolor="tab:blue")
        axes[number, 0].set_ylabel(names[number])
    return figure


PICTURES = (
    landscape, spheres, overlaps, manifold, denoising, walks, shares, stages, memories, narrower,
    moons, marginals, energy_transitions, evaluation, recall_paths, walk_jump,
    shrinkage, prior, fdr, inverse_problems,
)  # fmt: skip


def thumbnail(notebook: str) -> Image.Image:
    """A picture of a tutorial as it was last run, at most 400 x 200 pixels."""
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pictures = [output.data["image/png"] for output in outputs
                if "image/png" in output.get("data", {})]  # fmt: skip
    chosen = Image.open(io.BytesIO(base64.b64decode(pictures[THUMBNAILS[notebook]]))).convert("RGB")
    chosen.thumbnail((400, 200))
    return chosen


def write(name: str, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    save(name, Image.open(buffer))


def save(name: str, picture: Image.Image) -> None:
    """As a PNG of at most 64 colours, which keeps each below 60 kB."""
    FOLDER.mkdir(exist_ok=True)
    colours = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    colours.save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png {(FOLDER / f'{name}.png').stat().st_size / 1000:.0f} kB")


def main() -> None:
    names = [draw.__name__ for draw in PICTURES]
    parser = argparse.ArgumentParser(description=__doc__)
    choices = [[], *names, *THUMBNAILS]
    parser.add_argument("names", nargs="*", choices=choices, help="all of them by default")
    chosen = parser.parse_args().names
    mpl.use("agg")
    for draw in PICTURES:
        if draw.__name__ in chosen or not chosen:
            write(draw.__name__, draw())
    for notebook in THUMBNAILS:
        if notebook in chosen or not chosen:
            save(notebook, thumbnail(notebook))


if __name__ == "__main__":
    main()
