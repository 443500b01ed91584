"""Langevin integrators, as pure single steps. Steps and frictions are in units of sigma."""

from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    Target,
    WalkState,
    accept_prob,
    metropolis,
    stuck_if_not_finite,
    walk,
)
from numpyro_neb.integrators.microcanonical import MAMS, Microcanonical
from numpyro_neb.integrators.overdamped import MALA, ULA
from numpyro_neb.integrators.underdamped import ABOBA, BAOAB, GHMC

__all__ = [
    "ABOBA",
    "BAOAB",
    "GHMC",
    "MALA",
    "MAMS",
    "ULA",
    "AbstractIntegrator",
    "Microcanonical",
    "Target",
    "WalkState",
    "accept_prob",
    "metropolis",
    "stuck_if_not_finite",
    "walk",
]
