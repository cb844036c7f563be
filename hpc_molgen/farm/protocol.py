"""What a replica goes through, cut into segments: the places where it can be stopped and goes on with the same bits."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_molgen.config import FarmConfig
from hpc_molgen.dynamics.engine import GPU_PLATFORMS
from hpc_molgen.dynamics.gromacs import GROMACS

HEATING_STEPS = 20  # temperatures of the ramp


@dataclass(frozen=True)
class Segment:
    """A stretch of dynamics under constant conditions.

    Attributes
    ----------
    n_steps, n_frames : int
        Frames divide the steps evenly; 0 frames before the production.
    temperature_kelvin : float
    restraint_kj_mol_nm2 : float
        Spring of the heavy atoms to where they were after the minimisation.
    pressure_bar : float or None
        None keeps the volume.
    """

    n_steps: int
    n_frames: int
    temperature_kelvin: float
    restraint_kj_mol_nm2: float
    pressure_bar: float | None


@dataclass(frozen=True)
class Protocol:
    """All segments of a replica, in order.

    Attributes
    ----------
    segments : tuple of Segment
    steps_per_frame : int
    timestep_fs : float
    """

    segments: tuple[Segment, ...]
    steps_per_frame: int
    timestep_fs: float

    @property
    def n_frames(self) -> int:
        """Frames of the production."""
        return sum(segment.n_frames for segment in self.segments)

    @property
    def n_steps(self) -> int:
        """Steps in all."""
        return sum(segment.n_steps for segment in self.segments)

    @property
    def simulated_ns(self) -> float:
        """Length of a replica, heating and equilibration included."""
        return self.n_steps * self.timestep_fs * 1e-6


def make_protocol(config: FarmConfig, temperature_kelvin: float, segment_steps: int) -> Protocol:
    """Return heating, equilibration at constant volume, equilibration and production.

    Restraints hold while it is heated and kept at constant volume, and are released in equal steps over the equilibration
    that follows. The segments depend on the configuration and `segment_steps` alone, never on speed.
    """
    per_frame = max(1, round(config.save_every_ps * 1e3 / config.timestep_fs))
    spring = config.restraint_kj_mol_nm2

    def steps(ps: float) -> int:
        return round(ps * 1e3 / config.timestep_fs)

    segments: list[Segment] = []
    heating = _cut(steps(config.heating_ps), min(segment_steps, max(1, steps(config.heating_ps) // HEATING_STEPS)))
    for number, n in enumerate(heating, 1):
        share = number / len(heating)
        warm = config.heating_from_kelvin + share * (temperature_kelvin - config.heating_from_kelvin)
        segments.append(Segment(n, 0, warm, spring, None))
    for n in _cut(steps(config.constant_volume_ps), segment_steps):
        segments.append(Segment(n, 0, temperature_kelvin, spring, None))
    released = _cut(steps(config.equilibration_ps), segment_steps, at_least=5 if spring else 1)
    for number, n in enumerate(released):
        left = spring * (1 - number / len(released))
        segments.append(Segment(n, 0, temperature_kelvin, left, config.pressure_bar))
    frames = max(1, round(steps(config.production_ps) / per_frame))
    for n in _cut(frames, max(1, segment_steps // per_frame)):
        segments.append(Segment(n * per_frame, n, temperature_kelvin, 0.0, config.pressure_bar))
    return Protocol(tuple(segments), per_frame, config.timestep_fs)


def segment_steps(platform: str, n_atoms: int) -> int:
    """Steps between two places where a replica can be stopped: some seconds of work, many times what a new start costs."""
    if platform in GPU_PLATFORMS:
        return 50_000
    if platform == GROMACS:
        return min(10_000, max(500, 15_000_000 // n_atoms))
    return 10_000 if n_atoms <= 1000 else 2_000


def _cut(total: int, size: int, at_least: int = 1) -> list[int]:
    """Cut `total` into parts of nearly equal size, none above `size`."""
    if total == 0:
        return []
    n = min(total, max(at_least, -(-total // size)))
    return [total * (part + 1) // n - total * part // n for part in range(n)]
