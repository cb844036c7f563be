"""Normalising flows on the product of a torus and a Euclidean space: exact ln q in one pass."""
