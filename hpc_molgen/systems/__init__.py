"""Molecular systems: what is simulated, with which energy function, at which temperature."""
