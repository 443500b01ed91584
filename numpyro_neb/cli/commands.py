"""The commands that work on files of arrays: train, evaluate, sample, denoise, recall, info."""

import argparse
import io
import shutil
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from numpyro.diagnostics import summary
from numpyro.infer import MCMC

import numpyro_neb as neb
from numpyro_neb._internal.atomic_files import write_whole
from numpyro_neb._internal.checks import (
    check_count,
    check_finite,
    check_positive,
    require,
)
from numpyro_neb._internal.events import check_rows
from numpyro_neb.cli.files import check_file, check_out, holds_arrays, read_array, write_array
from numpyro_neb.empirical_bayes.noise import warn_of_other_noise
from numpyro_neb.energies.base import trainable

_DATA = "floats of shape (n, *event_shape): .npy, .npz, or .csv or .tsv with a line of names"
_TRAIN = """\
Trains an energy on a file of clean examples and writes it as safetensors: first by denoising, then
by maximum likelihood, which gives each part of the data its weight. For denoising alone the first
stage is enough: --likelihood-steps 0. The file is read as needed, so it may be larger than memory.
After a kill or Ctrl-C, the same command resumes from its newest checkpoint, if it keeps any:
pip install 'numpyro-neb[checkpoints]'.

  python -m numpyro_neb train digits.npy --sigma auto --out energy.safetensors
  python -m numpyro_neb train photos.npy --sigma 0.2 --network unet --out photos.safetensors
"""
_SAMPLE = """\
Walk-jump sampling. If --out ends in .zarr, draws are written as they come: after a kill or Ctrl-C
the same command resumes where it stopped, with the same draws, and the store opens at any moment.
Otherwise they are written as NetCDF at the end. posterior/y is the walk, posterior/x the jumps.

  python -m numpyro_neb sample energy.safetensors --out draws.nc
  python -m numpyro_neb sample energy.safetensors --draws 1000000 --out draws.zarr
"""

_EVALUATE = """\
Is the energy right? Prints a verdict and a table: whether and how its walk differs from noisy
held-out examples, its log-likelihood and its denoising, compared with a Gaussian's and, with
--train, the kernel density's.

  python -m numpyro_neb evaluate energy.safetensors held_out.npy --train train.npy --out found.png
"""


def add_commands(commands: Any) -> None:
    """Adds the parsers; each sets `run`, a function of the arguments."""
    _add_train(commands)
    _add_evaluate(commands)
    _add_others(commands)
    for name in ("train", "evaluate", "sample"):
        commands.choices[name].add_argument(
            "--seed", type=int, default=0, help="for all random numbers (0)"
        )
    for name in ("train", "evaluate", "denoise", "recall", "info"):
        commands.choices[name].add_argument(
            "--array", metavar="NAME", help="which array of a .npz file, if it holds several"
        )


def _add_train(commands):
    raw = argparse.RawDescriptionHelpFormatter
    train = commands.add_parser(
        "train", help="train an energy on clean examples", description=_TRAIN, formatter_class=raw
    )
    train.add_argument("data", type=Path, metavar="DATA", help=_DATA)
    train.add_argument(
        "--sigma",
        required=True,
        help="the noise, in the data's units; auto: sigma_c or the spread of the first 5,000",
    )
    train.add_argument("--out", type=Path, required=True, help="the file to write")
    train.add_argument("--network", choices=("mlp", "unet"), default="mlp")
    train.add_argument("--width", type=int, default=256, help="of the mlp's layers (256)")
    train.add_argument("--depth", type=int, default=3, help="hidden layers of the mlp (3)")
    train.add_argument(
        "--channels", type=int, nargs="+", default=[24, 48], help="of the U-Net's levels (24 48)"
    )
    train.add_argument("--steps", type=int, default=5000, help="of denoising (5000)")
    train.add_argument(
        "--likelihood-steps", type=int, default=1000, help="of maximum likelihood, or 0 (1000)"
    )
    train.add_argument("--chains", type=int, default=128, help="for maximum likelihood (128)")
    train.add_argument("--batch", type=int, default=128, help="examples per step (128)")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="Adam's initial (0.001)")
    train.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW (0)")
    train.add_argument(
        "--held-out", type=float, default=0.05, help="the share kept for validation (0.05)"
    )
    train.add_argument("--checkpoints", type=Path, help="folder (OUT.checkpoints, deleted at end)")
    train.set_defaults(run=_train)


def _add_evaluate(commands):
    evaluate = commands.add_parser(
        "evaluate",
        help="check an energy: its walk, density and jumps against held-out examples",
        description=_EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("energy", type=Path, metavar="ENERGY.safetensors")
    evaluate.add_argument("held_out", type=Path, metavar="HELD_OUT", help=_DATA)
    evaluate.add_argument("--train", type=Path, help="the examples it was trained on")
    evaluate.add_argument("--out", type=Path, help="the picture to write, evaluation.png say")
    evaluate.add_argument("--num-steps", type=int, default=2000, help="of each chain (2000)")
    evaluate.add_argument("--pairs", type=int, default=1000, help="most examples used (1000)")
    evaluate.add_argument(
        "--num-temperatures", type=int, default=500, help="of the annealing to log Z (500)"
    )
    evaluate.set_defaults(run=_evaluate)


def _add_others(commands):
    sample = commands.add_parser(
        "sample",
        help="walk on an energy and jump: draws as an ArviZ file",
        description=_SAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _energy_and_out(sample, "draws.nc or draws.zarr")
    sample.add_argument("--chains", type=int, default=4, help="how many (4)")
    sample.add_argument("--draws", type=int, default=1000, help="per chain (1000)")
    sample.add_argument("--warmup", type=int, default=100, help="draws discarded first (100)")
    sample.add_argument("--num-steps", type=int, default=20, help="of the walk per draw (20)")
    sample.add_argument(
        "--draws-per-write", type=int, default=100, help="per chain, to a .zarr (100)"
    )
    sample.set_defaults(run=_sample)

    denoise = commands.add_parser(
        "denoise",
        help="the posterior mean of noisy examples",
        description="One jump, E[X given Y=y], from each noisy example. Writes .npy, "
        "or a table with the columns' names (.csv, .tsv), and warns if the noise does not look "
        "like the energy's sigma.",
    )
    _energy_and_out(denoise, "clean.npy", "noisy")
    denoise.set_defaults(run=_denoise)

    recall = commands.add_parser(
        "recall",
        help="follow cues to the energy's memories",
        description="The gradient flow from each cue. Writes .npz: attractors, energies, stable, "
        "converged, curvatures, one row per cue.",
    )
    _energy_and_out(recall, "memories.npz", "cues")
    recall.set_defaults(run=_recall)

    info = commands.add_parser(
        "info",
        help="describe an energy, or how far apart data lie",
        description="For an energy: its form, sigma, event shape and size. For a file of data: its "
        "shape, the overlaps of its i-spheres, and what they say about sigma.",
    )
    info.add_argument("file", type=Path, metavar="FILE")
    info.set_defaults(run=_info)


def _energy_and_out(parser, out, data=None):
    parser.add_argument("energy", type=Path, metavar="ENERGY.safetensors")
    if data:
        parser.add_argument("data", type=Path, metavar=data.upper(), help=_DATA)
    parser.add_argument("--out", type=Path, required=True, help=f"the file to write, {out} say")


def _train(arguments):
    check_out(arguments.out, (".safetensors",), arguments.data)
    _check_settings(arguments)
    data = read_array(arguments.data, arguments.array)
    check_rows("data", data, data.shape[1:])
    sigma = _sigma(arguments.sigma, data)
    num_held_out = round(arguments.held_out * len(data))
    require(num_held_out < len(data), f"--held-out leaves none to train on: {arguments.held_out}")
    train, held_out = data[: len(data) - num_held_out], data[len(data) - num_held_out :]
    key_network, key = jax.random.split(jax.random.key(arguments.seed))
    network, shape = _network(arguments, data.shape[1:], key_network), data.shape[1:]
    loc, scale = train.mean(0, dtype=np.float64), float(train.std(dtype=np.float64))
    require(scale != 0, "data must not be the same in all examples")
    check_finite("data", loc)  # the file need not fit in memory: a NaN shows in the mean too
    energy = neb.ResidualEnergy(network, sigma, shape, loc=loc.astype(np.float32), scale=scale)
    print(f"{len(train):,} examples of shape {shape}, {num_held_out:,} held out")
    print(f"sigma = {sigma:.4g}")
    folder = _checkpoints(arguments)
    energy, validation = _both_stages(arguments, energy, key, folder, train, held_out)
    neb.save(arguments.out, energy)
    if folder is not None and arguments.checkpoints is None:
        shutil.rmtree(folder)
    if num_held_out:
        loss, size = validation[-1], int(np.prod(shape))
        print(f"squared error of one jump, per coordinate, held out: {loss / size:.4g}")
        print(f"raw noise: {sigma**2:.4g}")
    print(f"written: {arguments.out}")
    if arguments.likelihood_steps:
        print("is it right? run python -m numpyro_neb evaluate on examples that it has not seen")


def _check_settings(arguments):
    """Raises an error for a number out of range, before the data are read."""
    _check_counts(arguments, steps=1, likelihood_steps=0, chains=1, batch=1, width=1, depth=0)
    check_positive("--learning-rate", arguments.learning_rate)
    decay, held_out = arguments.weight_decay, arguments.held_out
    require(0 <= decay < np.inf, f"--weight-decay must be finite, 0 or more, got {decay}")
    require(0 <= held_out < 1, f"--held-out must be between 0 and 1, got {held_out}")


def _check_counts(arguments, **least):
    for name, smallest in least.items():
        check_count(f"--{name.replace('_', '-')}", getattr(arguments, name), smallest)


def _both_stages(arguments, energy, key, folder, train, held_out):
    """The energy after denoising and maximum likelihood, and the held-out denoising losses."""
    schedule = optax.cosine_decay_schedule(arguments.learning_rate, arguments.steps)
    kept = lambda stage: None if folder is None else folder / stage  # noqa: E731
    common = {"batch_size": arguments.batch}
    # `fit` splits its own key in the same way: these come later in the sequence.
    key_likelihood, key_loss = jax.random.split(key, 5)[3:]
    result = neb.fit(
        energy,
        train,
        key=key,
        num_steps=arguments.steps,
        optimizer=optax.adamw(schedule, weight_decay=arguments.weight_decay),
        validation_data=np.asarray(held_out) if len(held_out) else None,
        checkpoint_dir=kept("denoising"),
        **common,
    )
    if arguments.likelihood_steps == 0:
        return result.energy, result.validation_losses
    print("maximum likelihood: a gap near 0 is right")
    energy = neb.fit(
        result.energy,
        train,
        key=key_likelihood,
        num_steps=arguments.likelihood_steps,
        objective=neb.MaximumLikelihood(num_chains=arguments.chains),
        checkpoint_dir=kept("likelihood"),
        **common,
    ).energy
    losses = [neb.denoising_loss(energy, np.asarray(held_out), key_loss)] if len(held_out) else []
    return energy, losses


def _checkpoints(arguments):
    """The folder for checkpoints; None if none was requested and orbax is not installed."""
    if arguments.checkpoints is not None:
        return arguments.checkpoints
    try:
        installed = find_spec("orbax.checkpoint") is not None
    except ModuleNotFoundError:  # find_spec imports the parent
        installed = False
    if not installed:
        install = "pip install 'numpyro-neb[checkpoints]'"
        print(f"no checkpoints, so if killed or stopped it has to start over: {install}")
        return None
    return arguments.out.with_name(f"{arguments.out.name}.checkpoints")


def _sigma(text, data):
    if text == "auto":
        with warnings.catch_warnings():  # `fit` says the same of all data
            warnings.simplefilter("ignore")
            some = np.asarray(data[:5000])
            # The spread has n - 1 degrees of freedom: noise is not wider than the data themselves.
            sd = float(np.sqrt(np.var(some, axis=0, dtype=float).mean()))
            return min(neb.sphere_overlaps(some).walk_sigma, sd)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--sigma must be a number or auto, got {text!r}") from None


def _network(arguments, shape, key):
    if arguments.network == "unet":
        return neb.networks.UNet(shape, tuple(arguments.channels), key=key)
    settings = {"width_size": arguments.width, "depth": arguments.depth}
    return neb.networks.MLP(shape, **settings, key=key)


def _sample(arguments):
    check_out(arguments.out, (".nc", ".zarr"), arguments.energy)
    _check_counts(arguments, chains=1, draws=1, warmup=0)
    energy = _energy(arguments.energy)
    mcmc = MCMC(
        neb.WalkJumpKernel(energy, num_steps=arguments.num_steps),
        num_warmup=arguments.warmup,
        num_samples=arguments.draws,
        num_chains=arguments.chains,
        chain_method="vectorized",
    )
    key, out = jax.random.key(arguments.seed), arguments.out
    if out.suffix == ".zarr":
        data = neb.stream(mcmc, key, out, draws_per_write=arguments.draws_per_write)
        # The others may be larger than memory.
        walk = {"lp": (data["sample_stats"]["lp"].values, "lp, of the walk")}
    else:
        _run_at_once(mcmc, key, out)
        draws = mcmc.get_samples(group_by_chain=True)
        walk = {name: (draws[name], text) for name, text in (("x", "the jumps"), ("y", "the walk"))}
    _print_convergence(walk, arguments)
    print(f"written: {out}")


def _print_convergence(walk, arguments):
    """The worst R-hat and effective number of draws, which take four draws per chain."""
    if arguments.draws < 4:
        print(f"{arguments.draws} draws per chain are too few for R-hat and effective draws")
        return
    for name, (draws, meaning) in walk.items():
        with np.errstate(invalid="ignore"):
            seen = summary({name: draws})[name]
        # A coordinate that never changes has neither, nor has one that is not finite.
        changes = np.isfinite(seen["n_eff"]) | ~np.isfinite(seen["mean"])
        if not np.any(changes):
            print(f"{meaning}: the same in each draw")
            continue
        fewest = np.min(seen["n_eff"][changes])  # its estimate can be negative in a short chain
        worst = f"effective draws at least {fewest:.0f}" if fewest > 0 else "few effective draws"
        if arguments.chains > 1:
            worst = f"R-hat at most {np.max(seen['r_hat'][changes]):.3f}, {worst}"
        print(f"{meaning}: {worst} of {arguments.chains * arguments.draws:,}")


def _evaluate(arguments):
    check_out(arguments.out, (".png", ".pdf", ".svg"), arguments.held_out, arguments.train)
    train = arguments.train
    found = neb.evaluate(
        _energy(arguments.energy),
        read_array(arguments.held_out, arguments.array),
        key=jax.random.key(arguments.seed),
        train=None if train is None else read_array(train, arguments.array),
        num_steps=arguments.num_steps,
        num_pairs=arguments.pairs,
        num_temperatures=arguments.num_temperatures,
    )
    print(found)
    if arguments.out is not None:
        axes, buffer = neb.plots.evaluation(found), io.BytesIO()
        axes[0].figure.savefig(buffer, dpi=150, format=arguments.out.suffix[1:] or "png")
        write_whole(arguments.out, buffer.getvalue())
        print(f"written: {arguments.out}")


def _run_at_once(mcmc, key, out):
    """Runs, and writes NetCDF, whole or not at all."""
    try:
        mcmc.run(key)
    except KeyboardInterrupt:
        text = "sample was stopped and wrote nothing: with --out draws.zarr, draws are kept as"
        print(f"\n{text} they come, and the same command resumes", file=sys.stderr)
        raise
    data = neb.to_arviz(mcmc)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        data.to_netcdf(str(temporary))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _denoise(arguments):
    check_out(arguments.out, (".npy", ".csv", ".tsv"), arguments.energy, arguments.data)
    energy, noisy = _energy(arguments.energy), read_array(arguments.data, arguments.array)
    fits = noisy.ndim == 2 or arguments.out.suffix in ("", ".npy")
    require(fits, f"--out must end in .npy for examples of shape {noisy.shape[1:]}")
    clean = np.asarray(neb.posterior_mean(energy, noisy))
    if clean.size:
        warn_of_other_noise(energy, noisy)
    write_array(arguments.out, clean, arguments.data)
    print(f"written: {arguments.out}, of shape {noisy.shape}")


def _recall(arguments):
    check_out(arguments.out, (".npz",), arguments.energy, arguments.data)
    energy, cues = _energy(arguments.energy), read_array(arguments.data, arguments.array)
    found = neb.recall(energy, cues)
    buffer = io.BytesIO()
    arrays: Any = {name: np.asarray(array) for name, array in found._asdict().items()}
    np.savez(buffer, **arrays)
    write_whole(arguments.out, buffer.getvalue())
    count = found.converged.size
    rest, stable = int(found.converged.sum()), int(found.stable.sum())
    print(f"{rest} of {count} cues came to rest, {stable} in a stable memory")
    print(f"written: {arguments.out}")


def _info(arguments):
    check_file(arguments.file)
    if holds_arrays(arguments.file):
        data = read_array(arguments.file, arguments.array)
        require(data.ndim > 0, "a file of data must hold several examples, got one number")
        overlaps = neb.sphere_overlaps(np.asarray(data[:5000]))
        print(f"{len(data):,} examples of shape {data.shape[1:]}, {data.dtype}")
        print(overlaps if len(data) <= 5000 else f"{overlaps} (of the first 5,000)")
        print(overlaps.advice)
        return
    energy = _energy(arguments.file)
    arrays = jax.tree.leaves(eqx.filter(energy, trainable(energy)))
    network = getattr(energy, "network", None)
    kind = f" of a network {type(network).__name__}" if network is not None else ""
    print(f"{type(energy).__name__}{kind}, event shape {energy.event_shape}")
    if not energy.one_level:
        print(f"sigma from {energy.sigma_range[0]:.4g} to {energy.sigma_range[1]:.4g}")
    else:
        print(f"sigma {float(energy.sigma):.4g}")
    print(f"{sum(array.size for array in arrays):,} trainable parameters")


def _energy(path):
    check_file(path)
    return neb.load(path)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code: 0, 1 with a message, or 130 after Ctrl-C.

    Warnings are shown as sentences, each once.
    """
    shown = set()

    def show(message, *_):
        if str(message) not in shown:
            print(f"{arguments.command}: warning: {message}", file=sys.stderr)
        shown.add(str(message))

    try:
        for name, value in vars(arguments).items():
            bits = 63 if name == "seed" else 31
            fits = not isinstance(value, int) or -(2**bits) <= value < 2**bits
            require(fits, f"--{name.replace('_', '-')} must be less than 2^{bits}, got {value}")
        with warnings.catch_warnings():
            warnings.showwarning = show
            arguments.run(arguments)
    except KeyboardInterrupt:
        print(f"{arguments.command}: stopped", file=sys.stderr)
        return 130
    except (ValueError, TypeError, ArithmeticError, OSError, ModuleNotFoundError) as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
        print(f"{arguments.command}: unexpected {text}", file=sys.stderr)
        return 1
    return 0
