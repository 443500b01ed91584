"""Energies as safetensors files, without pickle."""

from numpyro_neb.files.energy_file import load, save

__all__ = ["load", "save"]
