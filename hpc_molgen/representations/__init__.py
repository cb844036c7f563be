"""Coordinates that a surrogate sees: encode, decode, log|det J|."""
