"""Internals that several folders share; not part of the public API."""
