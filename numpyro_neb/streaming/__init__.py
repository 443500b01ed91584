"""Long runs: draws written to a Zarr store as they come, and a sampler's state in a file."""

from numpyro_neb.streaming.run import load_state, save_state, stream

__all__ = ["load_state", "save_state", "stream"]
