"""Generative surrogates of molecular dynamics: trained, corrected, and compared with it honestly."""

__version__ = "0.3.0"
