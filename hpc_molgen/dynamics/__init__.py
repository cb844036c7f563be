"""Molecular dynamics and energies."""
