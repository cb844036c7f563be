"""GROMACS, where its executable is found: its tools, and dynamics of boxes of water in processes of its own."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import openmm
from openmm import unit

from hpc_molgen import interrupts
from hpc_molgen.dynamics.engine import degrees_of_freedom
from hpc_molgen.dynamics.gromacs_topology import SPRING, molecule_ranges, nonbonded_force, topology_text
from hpc_molgen.errors import EnvironmentProblem, InputError

GROMACS = "gromacs"
ONE_CORE = ("-ntmpi", "1", "-ntomp", "1", "-nb", "cpu", "-pin", "off")  # of mdrun, whose caller is pinned
_MDP = """\
integrator = {integrator}
nsteps = {n_steps}
dt = {dt_ps}
continuation = {continuation}
emtol = 10
ld-seed = {seed}
tc-grps = System
tau-t = {tau_ps}
ref-t = {kelvin}
pcoupl = {pcoupl}
tau-p = 2
compressibility = 4.5e-5
ref-p = {pressure_bar}
refcoord-scaling = com
comm-mode = {comm_mode}
nstcomm = 100
nstxout = {every}
nstvout = {every}
nstenergy = {every}
nstcalcenergy = {every}
nstlog = 0
nstlist = 10
cutoff-scheme = Verlet
coulombtype = PME
coulomb-modifier = None
rcoulomb = {cutoff_nm}
ewald-rtol = {ewald_rtol}
vdwtype = Cut-off
vdw-modifier = None
rvdw = {cutoff_nm}
DispCorr = {dispersion}
constraints = none
lincs-iter = 2
{define}
"""


class GromacsProblem(Exception):
    """A tool of GROMACS ended with an error; the message is GROMACS's own."""


def gromacs_path() -> str | None:
    """Return the executable, if there is one."""
    return shutil.which("gmx")


@lru_cache
def gromacs_version(executable: str) -> str:
    """Return its name, version and precision, such as "GROMACS 2022.5 (mixed precision)"."""
    text = call(executable, Path.cwd(), "--version")
    found = [re.search(rf"{what}\s*version:\s*([\w.]+)|{what}:\s*([\w.]+)", text) for what in ("GROMACS", "Precision")]
    version, precision = (next(filter(None, match.groups())) if match else "unknown" for match in found)
    return f"GROMACS {version} ({precision} precision)"


def call(executable: str, folder: Path, *arguments: str, given: str = "", wait: Callable[[], None] | None = None) -> str:
    """Run a tool of GROMACS in `folder` on one thread; return what it printed.

    Parameters
    ----------
    given : str
        Its input.
    wait : callable, optional
        Called again and again while it runs; what it raises ends the tool.

    Raises
    ------
    GromacsProblem
        When it ends with an error.
    EnvironmentProblem
        When the disk is full.
    """
    environment = {**os.environ, "GMX_MAXBACKUP": "-1", "OMP_NUM_THREADS": "1"}
    # in a session of its own: Ctrl-C is its parent's to answer; and it must not outlive a parent that is killed
    line = [*_die_with_parent(), executable, "-quiet", *arguments]
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as said:
        told.write(given)
        told.seek(0)
        process = subprocess.Popen(
            line, cwd=folder, env=environment, stdin=told, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(None if wait is None else 0.1)
                if wait is not None:
                    wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        text = said.read()
    if process.returncode:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        at = next((n for n, line in enumerate(lines) if "error" in line.lower()), len(lines) - 3)
        message = f"gmx {arguments[0]} failed ({process.returncode}): {' '.join(lines[max(0, at) : at + 6])}"
        if "No space left on device" in text or "disk quota" in text.lower():
            raise EnvironmentProblem(f"{folder}: the disk is full ({message})")
        raise GromacsProblem(message)
    return text


@lru_cache
def _die_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv")  # of util-linux
    return [] if setpriv is None else [setpriv, "--pdeathsig", "KILL"]


def write_coordinates(positions_nm: np.ndarray, box_nm: np.ndarray, path: Path) -> None:
    """Write positions (n_atoms, 3) and the edges (3,) of a rectangular box as a .gro of nine decimals."""
    rows = enumerate(positions_nm, 1)
    lines = [
        f"    1MOL  {f'A{n % 10_000}':>5}{n % 100_000:>5}" + "".join(f"{x:14.9f}" for x in row) for n, row in rows
    ]  # fmt: skip
    box = " ".join(f"{edge:.9f}" for edge in box_nm)
    path.write_text("\n".join(["molecules", f"{len(lines):5d}", *lines, box]) + "\n")


class GromacsBox:
    """Dynamics of a periodic openmm.System by GROMACS, one process of one thread for each stretch.

    The stochastic dynamics integrator of GROMACS (Goga et al. 2012, J. Chem. Theory Comput. 8, 3637), PME with the Ewald
    coefficient of the system, no shift and no switch, and stochastic cell rescaling for pressure (Bernetti and Bussi 2020,
    J. Chem. Phys. 153, 114107). Random numbers depend on the seed that each stretch is given. One version of GROMACS on one
    kind of processor gives the same bits again: plans of its Fourier transforms are not tuned by timing.

    Parameters
    ----------
    executable : str
    system : openmm.System
        With PME, without switching function, in a rectangular box.
    n_solute : int
        Atoms at the beginning, one or more whole molecules, whose frames are wanted.
    restrained : sequence of int
        Atoms that may be restrained.
    timestep_fs, friction_per_ps : float

    Raises
    ------
    InputError
        When GROMACS has no counterpart of the system.
    """

    def __init__(
        self,
        executable: str,
        system: openmm.System,
        n_solute: int,
        restrained: Sequence[int] = (),
        *,
        timestep_fs: float = 2.0,
        friction_per_ps: float = 1.0,
    ) -> None:
        self.executable, self.degrees_of_freedom = executable, degrees_of_freedom(system)
        nonbonded = nonbonded_force(system)
        if nonbonded.getNonbondedMethod() != openmm.NonbondedForce.PME or nonbonded.getUseSwitchingFunction():
            raise InputError("the engine gromacs runs boxes with PME and a plain cut-off: use the engine openmm")
        cutoff = nonbonded.getCutoffDistance().value_in_unit(unit.nanometer)
        alpha = nonbonded.getPMEParameters()[0].value_in_unit(unit.nanometer**-1)
        if not alpha:  # OpenMM's user guide, section 19.6.5
            alpha = math.sqrt(-math.log(2 * nonbonded.getEwaldErrorTolerance())) / cutoff
        moves = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
        self._fixed = {
            "dt_ps": timestep_fs * 1e-3, "tau_ps": 1 / friction_per_ps, "cutoff_nm": cutoff,
            "ewald_rtol": repr(math.erfc(alpha * cutoff)), "comm_mode": "Linear" if moves else "None",
            "dispersion": "EnerPres" if nonbonded.getUseDispersionCorrection() else "no",
        }  # fmt: skip
        self._directory = tempfile.TemporaryDirectory(prefix="hpc_molgen-gromacs-")
        self._folder = Path(self._directory.name)
        (self._folder / "topol.top").write_text(topology_text(system, restrained))
        self._n_solute = n_solute
        ranges = [(0, n_solute), *((a, b) for a, b in molecule_ranges(system) if a >= n_solute)]
        starts, sizes = np.array(ranges)[:, 0], np.diff(np.array(ranges), axis=1)[:, 0]
        self._first = np.repeat(starts, sizes)  # of each atom, the first one of its molecule

    def minimise(self, positions_nm: np.ndarray, box_nm: np.ndarray, max_iterations: int) -> np.ndarray:
        """Return positions (n_atoms, 3) after at most `max_iterations` steepest descents."""
        settings = {"integrator": "steep", "n_steps": max_iterations, "continuation": "no", "every": 0}
        self._prepare(positions_nm, None, box_nm, None, settings)
        self._mdrun()
        return self._whole(self._frames(velocities=False)[0][-1], np.asarray(positions_nm, np.float32), np.diag(box_nm))

    def energy_kj_mol(self, positions_nm: np.ndarray, box_nm: np.ndarray) -> float:
        """Return the potential energy of positions (n_atoms, 3)."""
        self._prepare(positions_nm, None, box_nm, None, {"integrator": "md", "n_steps": 0, "continuation": "yes", "every": 1})
        self._mdrun()
        return float(self._energies("Potential")[0, 0])

    def run(
        self,
        state: Mapping[str, np.ndarray],
        seed: int,
        n_steps: int,
        every: int,
        *,
        temperature_kelvin: float,
        pressure_bar: float | None = None,
        spring_kj_mol_nm2: float = 0.0,
        constrain_start: bool = False,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Advance `n_steps` from a state, with frames every `every` steps.

        Parameters
        ----------
        state : mapping
            `positions`, `velocities` (n_atoms, 3), `box` (3, 3), and `held`, the positions that the springs pull to.
        constrain_start : bool
            Positions and velocities do not fulfil the constraints yet.

        Returns
        -------
        state : dict
            At the end, float32; molecules are whole.
        positions_nm : np.ndarray, shape=(n_frames, n_solute, 3), float32
            Continuous, not wrapped into the box.
        energies_kj_mol : np.ndarray, shape=(n_frames, 2)
            Potential and kinetic.

        Raises
        ------
        GromacsProblem
            When GROMACS fails, as it does when a molecule blows up.
        KeyboardInterrupt
            When a signal has come.
        """
        settings = {
            "integrator": "sd", "n_steps": n_steps, "every": every, "kelvin": temperature_kelvin,
            "continuation": "no" if constrain_start else "yes", "seed": seed % (2**31 - 1),
        }  # fmt: skip
        if pressure_bar is not None:
            settings |= {"pcoupl": "C-rescale", "pressure_bar": pressure_bar}
        if spring_kj_mol_nm2:
            settings["define"] = f"define = -D{SPRING}={spring_kj_mol_nm2!r}"
        self._prepare(state["positions"], state["velocities"], state["box"], state["held"], settings)
        self._mdrun()
        return self._read(state)

    def _prepare(
        self,
        positions_nm: np.ndarray,
        velocities: np.ndarray | None,
        box_nm: np.ndarray,
        held_nm: np.ndarray | None,
        settings: Mapping[str, object],
    ) -> None:
        from mdtraj.formats import TRRTrajectoryFile

        folder, edges = self._folder, np.diag(box_nm)
        for path in folder.glob("run.*"):
            path.unlink()
        defaults = {"pcoupl": "no", "pressure_bar": 1.0, "kelvin": 300.0, "seed": 1, "define": ""}
        (folder / "run.mdp").write_text(_MDP.format_map({**self._fixed, **defaults, **settings}))
        write_coordinates(positions_nm, edges, folder / "conf.gro")
        reference = [] if held_nm is None else ["-r", "held.gro"]
        if held_nm is not None:
            write_coordinates(held_nm, edges, folder / "held.gro")
        exact = []
        if velocities is not None:  # what a .gro rounds
            exact = ["-t", "start.trr"]
            with TRRTrajectoryFile(str(folder / "start.trr"), "w") as file:
                file._write(
                    *(np.ascontiguousarray(positions_nm, np.float32)[None], np.zeros(1, np.float32), np.zeros(1, np.int32)),
                    *(np.ascontiguousarray(box_nm, np.float32)[None], np.zeros(1, np.float32)),
                    vel=np.ascontiguousarray(velocities, np.float32)[None],
                )  # fmt: skip
        files = ["-f", "run.mdp", "-c", "conf.gro", "-p", "topol.top", "-o", "run.tpr", "-po", "run.out.mdp"]
        try:
            call(self.executable, folder, "grompp", *files, *reference, *exact, "-maxwarn", "10", wait=interrupts.check)
        except GromacsProblem as problem:
            if "half the shortest box vector" not in str(problem):
                raise
            raise InputError(
                f"a box of {edges.min():.2f} nm is too small for GROMACS, whose pair list reaches beyond the cut-off of "
                f"{self._fixed['cutoff_nm']:g} nm: make farm.box_nm larger, or use farm.engine openmm"
            ) from problem

    def _mdrun(self) -> None:
        line = ("-deffnm", "run", *ONE_CORE, "-reprod", "-notunepme")
        call(self.executable, self._folder, "mdrun", *line, wait=interrupts.check)

    def _energies(self, *names: str) -> np.ndarray:
        """Return energies of each frame, (n_frames, n_names), kJ/mol."""
        given = "\n".join([*names, "", ""])
        call(self.executable, self._folder, "energy", "-f", "run.edr", "-o", "run.xvg", "-dp", given=given)
        return read_xvg(self._folder / "run.xvg")[:, 1:]

    def _read(self, state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        positions, boxes, velocities = self._frames(velocities=True)
        before = np.asarray(state["positions"], np.float32)
        solute, last = positions[1:, : self._n_solute].copy(), before[: self._n_solute]  # the first frame is the start
        for frame, box in zip(solute, boxes[1:], strict=True):
            frame[:] = last = unwrapped(frame, last, np.diag(box))
        positions[-1, : self._n_solute] = last
        end = self._whole(positions[-1], positions[-1], np.diag(boxes[-1]))
        kept = {"positions": end, "velocities": velocities[-1].copy(), "box": boxes[-1].copy(), "held": state["held"]}
        return kept, solute, self._energies("Potential", "Kinetic-En.")[1:]

    def _whole(self, positions_nm: np.ndarray, solute_nm: np.ndarray, edges_nm: np.ndarray) -> np.ndarray:
        """Return the solute next to where it was, and the other molecules whole with their first atoms in the box."""
        inside = positions_nm - np.floor(positions_nm / edges_nm).astype(np.float32) * edges_nm
        whole = unwrapped(inside, inside[self._first], edges_nm)
        n = self._n_solute
        whole[:n] = unwrapped(positions_nm[:n], solute_nm[:n], edges_nm)
        return whole

    def _frames(self, velocities: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions, box vectors and velocities of what was run, float32."""
        from mdtraj.formats import TRRTrajectoryFile

        with TRRTrajectoryFile(str(self._folder / "run.trr")) as file:
            found = file._read(n_frames=len(file), atom_indices=None, get_velocities=velocities)
        return found[0], found[3], found[5]


def read_xvg(path: Path) -> np.ndarray:
    """Return the columns of a file that GROMACS wrote for plots, (n_rows, n_columns)."""
    lines = path.read_text().splitlines()
    return np.array([[float(value) for value in line.split()] for line in lines if line[:1] not in ("#", "@", "&")])


def unwrapped(positions_nm: np.ndarray, before_nm: np.ndarray, edges_nm: np.ndarray) -> np.ndarray:
    """Return positions (n_atoms, 3) as the periodic images next to `before_nm`, for a rectangular box."""
    images = np.round((positions_nm - before_nm) / edges_nm)
    near: np.ndarray = positions_nm - (images * edges_nm).astype(positions_nm.dtype)
    return near
