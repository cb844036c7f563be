"""Analyses of ensembles and trajectories."""
