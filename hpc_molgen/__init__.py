"""hpc_molgen: is a generative surrogate cheaper than molecular dynamics, and can it be trusted?"""

__version__ = "0.1.0"
