"""GROMACS beside the other engines: the same molecule in vacuum with the same parameters, where an executable is found."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.dynamics.gromacs import GromacsProblem, call, read_xvg, unwrapped, write_coordinates
from hpc_molgen.dynamics.gromacs_topology import topology_text
from hpc_molgen.efficiency.suites.rounds import Method, mean_temperature
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch

AGREEMENT_KJ_MOL = 0.01  # of one energy, GROMACS in mixed precision
_BOX_NM, _CUTOFF_NM = 6.0, 2.0  # the molecule is smaller than the cut-off, and its images are beyond it
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
nstxout-compressed = {save_every}
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


def children_cpu_s() -> float:
    """CPU seconds of finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Gromacs:
    """One molecule in vacuum, prepared for GROMACS in a folder of its own.

    Parameters
    ----------
    system : MolecularSystem
        Flexible, without solvent.
    positions_nm : np.ndarray, shape=(n_atoms, 3)
    n_steps : int
        Of one run of 1 fs steps at the system's temperature, friction 1/ps.
    save_every : int
        Steps between frames; 0: none are written.

    Raises
    ------
    GromacsProblem
        When a tool of GROMACS fails, or its energy differs from OpenMM's by more than `AGREEMENT_KJ_MOL`.
    """

    def __init__(
        self,
        executable: str,
        system: MolecularSystem,
        positions_nm: np.ndarray,
        folder: Path,
        n_steps: int,
        seed: int,
        save_every: int = 0,
    ) -> None:
        self._executable, self._folder, self._system, self.n_steps = executable, folder.resolve(), system, n_steps
        self._save_every = save_every
        (folder / "topol.top").write_text(topology_text(openmm.XmlSerializer.deserialize(system.system_xml)))
        centred = positions_nm - positions_nm.mean(axis=0) + _BOX_NM / 2
        write_coordinates(centred, np.full(3, _BOX_NM), folder / "conf.gro")
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

    def _prepare(self, name: str, **settings: Any) -> None:
        given = {"kelvin": self._system.temperature_kelvin, "cutoff_nm": _CUTOFF_NM, "save_every": self._save_every}
        (self._folder / f"{name}.mdp").write_text(_MDP.format(**given, **settings))
        files = ["-f", f"{name}.mdp", "-c", "conf.gro", "-p", "topol.top", "-o", f"{name}.tpr", "-po", f"{name}.out.mdp"]
        call(self._executable, self._folder, "grompp", *files, "-maxwarn", "10")

    def _mdrun(self, name: str) -> None:
        call(
            self._executable, self._folder, "mdrun", "-deffnm", name, "-ntmpi", "1", "-ntomp", "1", "-nb", "cpu", "-pin", "off"
        )

    def _series(self, name: str, quantity: str) -> np.ndarray:
        call(self._executable, self._folder, "energy", "-f", f"{name}.edr", "-o", f"{name}.xvg", given=f"{quantity}\n\n")
        return read_xvg(self._folder / f"{name}.xvg")[:, 1]

    def run(self) -> None:
        """Run the dynamics."""
        self._mdrun("run")

    def method(self, label: str, yardstick: str, facts: dict[str, Any]) -> Method:
        """Return the method whose speed is in ns a day."""
        name = f"GROMACS (mixed precision, pair list, cut-off {_CUTOFF_NM:g} nm), 1 thread"
        return Method(
            label, name, self.run, self.n_steps * 1e-6 * 86_400, yardstick,
            {**facts, "energy_error_kj_mol": self.error_kj_mol, "startup_cpu_s": self._overhead_s[0]},
            cpu_clock=children_cpu_s, overhead_s=(self._overhead_s[0], self._overhead_s[1]),
        )  # fmt: skip

    def frames(self) -> np.ndarray:
        """Positions in nm of the frames of the run, shape=(n_frames, n_atoms, 3), each molecule whole."""
        import mdtraj

        found = mdtraj.load(str(self._folder / "run.xtc"), top=self._system.topology).xyz.astype(np.float64)
        edges = np.full(3, _BOX_NM)
        return np.array([unwrapped(frame, frame[:1], edges) for frame in found])

    def temperature(self) -> dict[str, Any]:
        """Mean temperature of the run after its first fifth (every call repeats the same run)."""
        kelvin = self._series("run", "Temperature")
        return mean_temperature(kelvin[len(kelvin) // 5 :, None])


def _openmm_energy(system: MolecularSystem, positions_nm: np.ndarray) -> float:
    return float(Engine(system, "Reference").reduced_energy(positions_nm[None])[0] * system.kt_kj_mol)
