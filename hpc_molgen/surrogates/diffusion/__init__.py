"""Diffusion on the product of a torus and a Euclidean space."""
