"""Energies phi(y): the smoothed signal has a density f(y) proportional to exp(-phi(y)).

Everything after training sees only an `AbstractEnergy`: a learned network, an exact mixture and a
custom module are interchangeable.
"""

from numpyro_neb.energies.base import (
    AbstractEnergy,
    AbstractEnergyFamily,
    AbstractScoreField,
    NonTrainable,
    initial_position,
    trainable,
)
from numpyro_neb.energies.base import NonTrainable as Frozen  # noqa: F401 (its name in 0.1.0)
from numpyro_neb.energies.conditional import ConditionalEnergy
from numpyro_neb.energies.mixture import MixtureEnergy
from numpyro_neb.energies.network import NetworkEnergy, ResidualEnergy
from numpyro_neb.energies.score_field import ScoreField

__all__ = [
    "AbstractEnergy",
    "AbstractEnergyFamily",
    "AbstractScoreField",
    "ConditionalEnergy",
    "MixtureEnergy",
    "NetworkEnergy",
    "NonTrainable",
    "ResidualEnergy",
    "ScoreField",
    "initial_position",
    "trainable",
]
