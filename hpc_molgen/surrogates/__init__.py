"""Generative surrogates: noise to conformations, or noise to trajectories."""
