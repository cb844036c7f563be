"""Adversarial generation of whole time series in one shot."""
