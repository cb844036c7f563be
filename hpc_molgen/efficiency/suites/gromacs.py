"""GROMACS beside the other engines: the same molecule in vacuum with the same parameters, where an executable is found."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency.suites.rounds import Method, mean_temperature
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch

AGREEMENT_KJ_MOL = 0.01  # of one energy, GROMACS in mixed precision
_BOX_NM, _CUTOFF_NM = 6.0, 2.0  # the molecule is smaller than the cut-off, and its images are beyond it
_COUNTS = {"bonds": 2, "angles": 3, "dihedrals": 4, "pairs": 2, "exclusions": 2}
_MDP = """\
integrator = {integrator}
continuation = {continuation}
dt = 0.001
nsteps = {n_steps}
nstlist = 200
nstcalcenergy = 100
nstenergy = 100
nstlog = 0
nstxout = 0
nstvout = 0
comm-mode = None
cutoff-scheme = Verlet
verlet-buffer-tolerance = -1
rlist = 2.2
coulombtype = Cut-off
coulomb-modifier = None
rcoulomb = {cutoff_nm}
vdwtype = Cut-off
vdw-modifier = None
rvdw = {cutoff_nm}
DispCorr = no
constraints = none
gen-vel = {gen_vel}
gen-temp = {kelvin}
gen-seed = {seed}
ld-seed = {seed}
tc-grps = System
tau-t = 1.0
ref-t = {kelvin}
"""


class GromacsProblem(Exception):
    """GROMACS ended with an error or disagrees; the message is for the record."""


def gromacs_path() -> str | None:
    """Return the executable, if there is one."""
    return shutil.which("gmx")


def children_cpu_s() -> float:
    """CPU seconds of finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _interactions(system: openmm.System) -> Iterator[tuple[str, str]]:
    """Lines of the topology by section; every excluded pair is listed, with its own parameters where they are not zero."""
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                *atoms, length, k = force.getBondParameters(index)
                yield "bonds", f"{_atoms(atoms)} 1 {length._value!r} {k._value!r}"
        elif isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                *atoms, angle, k = force.getAngleParameters(index)
                yield "angles", f"{_atoms(atoms)} 1 {angle.value_in_unit(unit.degree)!r} {k._value!r}"
        elif isinstance(force, openmm.PeriodicTorsionForce):
            for index in range(force.getNumTorsions()):
                *atoms, n, phase, k = force.getTorsionParameters(index)
                yield "dihedrals", f"{_atoms(atoms)} 9 {phase.value_in_unit(unit.degree)!r} {k._value!r} {n}"
        elif isinstance(force, openmm.NonbondedForce):
            for index in range(force.getNumExceptions()):
                *atoms, charge, sigma, epsilon = force.getExceptionParameters(index)
                yield "exclusions", _atoms(atoms)
                if charge._value or epsilon._value:  # function 2: fudge, two charges, sigma, epsilon
                    yield "pairs", f"{_atoms(atoms)} 2 1.0 {charge._value!r} 1.0 {sigma._value!r} {epsilon._value!r}"
        elif not isinstance(force, openmm.CMMotionRemover):
            raise GromacsProblem(f"GROMACS has no counterpart of {type(force).__name__}")


def _atoms(atoms: list[int]) -> str:
    return " ".join(str(atom + 1) for atom in atoms)


def write_topology(system: openmm.System, path: Path) -> None:
    """Write a .top with the parameters of `system`, each atom a type of its own."""
    (nonbonded,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    types, atoms = [], []
    for index in range(system.getNumParticles()):
        charge, sigma, epsilon = (value._value for value in nonbonded.getParticleParameters(index))
        mass = system.getParticleMass(index)._value
        types.append(f"T{index + 1} 1 {mass!r} {charge!r} A {sigma!r} {epsilon!r}")
        atoms.append(f"{index + 1} T{index + 1} 1 MOL A{index + 1} {index + 1} {charge!r} {mass!r}")
    sections: dict[str, list[str]] = {
        "defaults": ["1 2 no 1.0 1.0"],
        "atomtypes": types,
        "moleculetype": ["MOL 0"],
        "atoms": atoms,
    }
    for section, line in _interactions(system):
        sections.setdefault(section, []).append(line)
    sections |= {"system": ["molecule"], "molecules": ["MOL 1"]}
    path.write_text("".join(f"[ {name} ]\n" + "\n".join(lines) + "\n\n" for name, lines in sections.items()))


def write_coordinates(positions_nm: np.ndarray, path: Path) -> None:
    """Write positions (n_atoms, 3), centred in the box, as a .gro of nine decimals."""
    centred = positions_nm - positions_nm.mean(axis=0) + _BOX_NM / 2
    lines = [f"    1MOL  {f'A{i + 1}':>5}{i + 1:>5}" + "".join(f"{x:14.9f}" for x in row) for i, row in enumerate(centred)]
    box = " ".join([f"{_BOX_NM:.5f}"] * 3)
    path.write_text("\n".join(["molecule", f"{len(lines):5d}", *lines, box]) + "\n")


class Gromacs:
    """One molecule in vacuum, prepared for GROMACS in a folder of its own.

    Parameters
    ----------
    system : MolecularSystem
        Flexible, without solvent.
    positions_nm : np.ndarray, shape=(n_atoms, 3)
    n_steps : int
        Of one run of 1 fs steps at the system's temperature, friction 1/ps.

    Raises
    ------
    GromacsProblem
        When a tool of GROMACS fails, or its energy differs from OpenMM's by more than `AGREEMENT_KJ_MOL`.
    """

    def __init__(
        self, executable: str, system: MolecularSystem, positions_nm: np.ndarray, folder: Path, n_steps: int, seed: int
    ):
        self._executable, self._folder, self._system, self.n_steps = executable, folder.resolve(), system, n_steps
        write_topology(openmm.XmlSerializer.deserialize(system.system_xml), folder / "topol.top")
        write_coordinates(positions_nm, folder / "conf.gro")
        single = {"integrator": "md", "continuation": "yes", "gen_vel": "no", "seed": seed}
        self._prepare("single", n_steps=0, **single)
        self._mdrun("single")
        self.error_kj_mol = abs(float(self._series("single", "Potential")[0]) - _openmm_energy(system, positions_nm))
        if self.error_kj_mol > AGREEMENT_KJ_MOL:
            raise GromacsProblem(
                f"its energy differs from OpenMM's by {self.error_kj_mol:.3g} kJ/mol, so its speed says nothing"
            )
        dynamics = {"integrator": "sd", "continuation": "no", "gen_vel": "yes", "seed": seed}
        self._prepare("start", n_steps=0, **dynamics)
        self._prepare("run", n_steps=n_steps, **dynamics)
        self._mdrun("start")
        starts = []
        for _ in range(3):
            watch, cpu = Stopwatch(), children_cpu_s()
            self._mdrun("start")
            starts.append((children_cpu_s() - cpu, watch.wall_s))
        self._overhead_s = tuple(np.median(starts, axis=0).tolist())

    def _call(self, *arguments: str, given: str = "") -> None:
        environment = {**os.environ, "GMX_MAXBACKUP": "-1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [self._executable, "-quiet", *arguments],
            cwd=self._folder, env=environment, input=given, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            at = next((n for n, line in enumerate(lines) if "error" in line.lower()), len(lines) - 3)
            raise GromacsProblem(f"gmx {arguments[0]} failed: {' '.join(lines[max(0, at) : at + 4])}")

    def _prepare(self, name: str, **settings: Any) -> None:
        kelvin = self._system.temperature_kelvin
        (self._folder / f"{name}.mdp").write_text(_MDP.format(kelvin=kelvin, cutoff_nm=_CUTOFF_NM, **settings))
        files = ["-f", f"{name}.mdp", "-c", "conf.gro", "-p", "topol.top", "-o", f"{name}.tpr", "-po", f"{name}.out.mdp"]
        self._call("grompp", *files, "-maxwarn", "10")

    def _mdrun(self, name: str) -> None:
        self._call("mdrun", "-deffnm", name, "-ntmpi", "1", "-ntomp", "1", "-nb", "cpu", "-pin", "off")

    def _series(self, name: str, quantity: str) -> np.ndarray:
        self._call("energy", "-f", f"{name}.edr", "-o", f"{name}.xvg", given=f"{quantity}\n\n")
        lines = (self._folder / f"{name}.xvg").read_text().splitlines()
        return np.array([float(line.split()[1]) for line in lines if line[0] not in "#@"])

    def method(self, label: str, yardstick: str, facts: dict[str, Any]) -> Method:
        """Return the method whose speed is in ns a day."""
        name = f"GROMACS (mixed precision, pair list, cut-off {_CUTOFF_NM:g} nm), 1 thread"
        return Method(
            label, name, lambda: self._mdrun("run"), self.n_steps * 1e-6 * 86_400, yardstick,
            {**facts, "energy_error_kj_mol": self.error_kj_mol, "startup_cpu_s": self._overhead_s[0]},
            cpu_clock=children_cpu_s, overhead_s=(self._overhead_s[0], self._overhead_s[1]),
        )  # fmt: skip

    def temperature(self) -> dict[str, Any]:
        """Mean temperature of the run after its first fifth (every call repeats the same run)."""
        kelvin = self._series("run", "Temperature")
        return mean_temperature(kelvin[len(kelvin) // 5 :, None])


def _openmm_energy(system: MolecularSystem, positions_nm: np.ndarray) -> float:
    return float(Engine(system, "Reference").reduced_energy(positions_nm[None])[0] * system.kt_kj_mol)
