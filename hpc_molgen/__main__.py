"""``python -m hpc_molgen`` is the same as ``hpc-molgen``."""

from hpc_molgen.cli import main

main()
