"""Ligands in open pockets: reading complexes, energies by hand, collective variables, binding and unbinding."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest

from hpc_molgen import preflight
from hpc_molgen.config import SystemConfig, load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.systems import protein_ligand
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.observables import make_observables, values_of
from hpc_molgen.systems.open_pocket import ligand_forces, mouth_nm, repelling
from hpc_molgen.systems.pocket import COORDINATES, Pocket, find_pocket
from hpc_molgen.systems.registry import load_system

SMJ = Path(__file__).parents[3] / "shared" / "data" / "pdb" / "1smj.pdb"
RADIUS_NM = 0.85


def cup_nm() -> np.ndarray:
    """C-alpha atoms 0.38 nm apart along a spiral on a sphere that is open at the top."""
    around, down, points = 0.0, np.pi - 0.3, []
    while down > 0.4 * np.pi:
        points.append([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)])
        step = 0.38 / (RADIUS_NM * np.hypot(np.sin(down), 0.5 / (2 * np.pi * RADIUS_NM)))
        around, down = around + step, down - 0.5 / (2 * np.pi * RADIUS_NM) * step
    return RADIUS_NM * np.array(points)


def write_complex(path: Path, n_ligand: int = 8) -> Path:
    """Write chain A of bare protein, and chain B: a cup with a haem at its bottom, a rod as ligand XYL, glycerol and water."""
    rows: list[tuple[str, str, str, str, int, np.ndarray, str]] = []

    def protein(chain: str, alphas: np.ndarray) -> None:
        for number, x in enumerate(alphas, start=1):
            for name, shift in (("N", [0.0, 0.0, 0.14]), ("CA", [0.0, 0.0, 0.0]), ("C", [0.0, 0.0, -0.15])):
                rows.append(("ATOM", name, "ALA", chain, number, x + shift, name[0]))

    protein("A", cup_nm()[:6] + 9.0)
    protein("B", cup_nm())
    bottom = np.array([0.0, 0.0, -0.45])
    rows.append(("HETATM", "FE", "HEM", "B", 500, bottom, "FE"))
    for name, side in zip("ABCD", ([1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]), strict=True):
        rows.append(("HETATM", f"N{name}", "HEM", "B", 500, bottom + 0.2 * np.array(side), "N"))
        rows.append(("HETATM", f"C{name}", "HEM", "B", 500, bottom + 0.4 * np.array(side), "C"))
    for number in range(n_ligand):
        at = np.array([0.08 * (number - (n_ligand - 1) / 2), 0.0, 0.0])
        rows.append(("HETATM", f"C{number + 1}", "XYL", "B", 501, at, "C"))
    for number in range(6):
        rows.append(("HETATM", f"C{number + 1}", "GOL", "B", 502, np.array([3.0 + 0.1 * number, 3.0, 0.0]), "C"))
    rows.append(("HETATM", "O", "HOH", "B", 503, np.array([4.0, 4.0, 4.0]), "O"))
    lines = []
    for serial, (record, name, residue, chain, number, x, element) in enumerate(rows, start=1):
        place = "".join(f"{10 * value:8.3f}" for value in x)
        shown = name if len(element) == 2 else f" {name}"
        lines.append(
            f"{record:<6}{serial:5d} {shown:<4} {residue:>3} {chain}{number:4d}    {place}  1.00  0.00          {element:>2}"
        )
    path.write_text("\n".join([*lines, "END", ""]))
    return path


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the made-up complex."""
    return write_complex(tmp_path_factory.mktemp("complex") / "cup.pdb")


@pytest.fixture(scope="module")
def cup(made_up: Path) -> MolecularSystem:
    """Its model."""
    return load_system(SystemConfig(name="p450", pdb=str(made_up)))


def pocket_of(system: MolecularSystem) -> Pocket:
    """The pocket of a system."""
    return find_pocket(system.topology, system.positions_nm)


def energies_by_hand(pocket: Pocket, native: np.ndarray, well: float, x: np.ndarray) -> dict[str, float]:
    """Energies of positions (n_atoms, 3) by the formulas of the module's page, in loops."""
    beads = [int(atom) for atom in pocket.ligand]
    found = {"bonds": 0.0, "wells": 0.0, "soft": 0.0}
    for i, j in itertools.combinations(beads, 2):
        found["bonds"] += 2500.0 * (np.linalg.norm(x[i] - x[j]) - np.linalg.norm(native[i] - native[j])) ** 2
    pairs = [(i, j) for i in range(len(native)) if i not in beads for j in beads if np.linalg.norm(native[i] - native[j]) < 0.9]
    for i, j in pairs:
        stretch = np.linalg.norm(x[i] - x[j]) - np.linalg.norm(native[i] - native[j])
        found["wells"] -= well / len(pairs) * np.exp(-(stretch**2) / 0.045)
    centre = native[beads].mean(axis=0)
    out = pocket.axes[2]
    along = (native - centre) @ out
    beside = np.linalg.norm(native - centre - along[:, None] * out, axis=1)
    reach = max(np.linalg.norm(native[j] - centre) for j in beads) + 0.75
    receptor = [i for i in range(len(native)) if i not in beads]
    for i in set(receptor) - {i for i, _ in pairs}:
        opened = beside[i] < 0.8 and along[i] > 0
        if not opened and beside[i] < 0.8 + reach and along[i] > -0.3 - reach:
            found["soft"] += sum(8.0 * np.exp(-np.sum((x[i] - x[j]) ** 2) / 0.125) for j in beads)
    end = max((along[i] for i in receptor if beside[i] < 0.8), default=0.0) + 1.2
    moved = x[beads].mean(axis=0) - centre
    outward = moved @ out
    aside = np.linalg.norm(moved - outward * out)
    walls = max(0.0, aside - 0.8) ** 2 + max(0.0, outward - end) ** 2 + max(0.0, -0.3 - outward) ** 2
    return found | {"tube": 250.0 * walls}


def test_the_complex_that_is_read(made_up: Path, cup: MolecularSystem) -> None:
    """The chain with a haem and a ligand, the largest hetero group; beads by hand; the way out is that of the open top."""
    n = len(cup_nm())
    assert "chain B" in cup.description and "ligand XYL as 2 beads" in cup.description
    assert [r.name for r in cup.topology.residues] == ["ALA"] * n + ["HEM", "LIG"]
    x = cup.positions_nm
    assert np.allclose(x[:n], cup_nm(), atol=6e-5)
    assert [a.name for a in cup.topology.atoms][n:] == ["FE", "NA", "NB", "NC", "ND", "C1", "C2"]
    assert np.allclose(x[n : n + 2], [[0, 0, -0.45], [0.3, 0, -0.45]], atol=1e-6)  # N and its carbon, 0.2 and 0.4 from the iron
    assert np.allclose(sorted(x[-2:, 0]), [-0.16, 0.16], atol=1e-6)
    assert pocket_of(cup).axes[2] @ [0, 0, 1] > 0.9
    system = openmm.XmlSerializer.deserialize(cup.system_xml)
    masses = np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])
    nearest = np.linalg.norm(x[:n, None] - x[None, -2:], axis=2).min(axis=1)
    assert np.array_equal(masses[:n], np.where(nearest < 1.0, 100.0, 0.0)) and not masses[n:-2].any()
    assert np.allclose(masses[-2:], 4 * 12.011, atol=0.01)
    assert "ligand GOL" in protein_ligand.p450(SystemConfig(name="p450", pdb=str(_nearer(made_up)), ligand="GOL")).description


def _nearer(made_up: Path) -> Path:
    """The complex with glycerol moved into the cup."""
    lines = [
        f"{line[:30]}{10 * 0.05 * (i % 6):8.3f}{0.5:8.3f}{1.0:8.3f}{line[54:]}" if " GOL " in line else line
        for i, line in enumerate(made_up.read_text().splitlines())
    ]
    path = made_up.with_name("near.pdb")
    path.write_text("\n".join(lines))
    return path


def test_what_is_missing_is_named(
    made_up: Path, tmp_path: Path, alanine: MolecularSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such ligand, no haem, no file, no openmmtools, no ligand to observe."""
    with pytest.raises(
        InputError, match=r"haem and a ligand CAM; there are: chain A: 6 residues, no hetero groups; chain B: .*XYL"
    ):
        load_system(SystemConfig(name="p450", pdb=str(made_up), ligand="CAM"))
    bare = tmp_path / "bare.pdb"
    bare.write_text("\n".join(line for line in made_up.read_text().splitlines() if " HEM " not in line))
    with pytest.raises(InputError, match="no chain has protein, haem and a ligand"):
        load_system(SystemConfig(name="p450", pdb=str(bare)))
    assert load_system(SystemConfig(name="t4l-xylene", pdb=str(bare))).n_atoms == len(cup_nm()) + 2
    with pytest.raises(InputError, match="needs the path or the http"):
        load_system(SystemConfig(name="p450"))
    monkeypatch.setitem(sys.modules, "openmmtools", None)
    with pytest.raises(InputError, match=r"187L.*pip install openmmtools"):
        load_system(SystemConfig(name="t4l-xylene", ligand="TMP"))
    with pytest.raises(InputError, match="a residue named LIG"):
        make_observables(("ligand_distance",), alanine, alanine.positions_nm)


def test_energies_by_hand(cup: MolecularSystem) -> None:
    """Each force on the ligand at its native place, half out, at the walls and turned, against loops over the pairs."""
    pocket, native = pocket_of(cup), cup.positions_nm
    system = openmm.System()
    for _ in range(len(native)):
        system.addParticle(1.0)
    for group, force in enumerate(ligand_forces(pocket, native, 20.0)):
        force.setForceGroup(group)
        system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    rng = np.random.default_rng(1)
    for shift in ([0, 0, 0], [0, 0, 0.5], [1.1, 0, 0.3], [0, 0.2, -0.5], [0.1, 0.1, 3.0]):
        x = native + rng.normal(0, 0.02, native.shape)
        x[pocket.ligand] += np.array(shift) @ pocket.axes
        context.setPositions(x)
        expected = energies_by_hand(pocket, native, 20.0, x)
        for group, name in enumerate(("bonds", "wells", "soft", "tube")):
            energy = context.getState(getEnergy=True, groups={group}).getPotentialEnergy()._value
            assert energy == pytest.approx(expected[name], rel=1e-6, abs=1e-6), (name, shift)
    context.setPositions(native)
    at_rest = [context.getState(getEnergy=True, groups={group}).getPotentialEnergy()._value for group in range(4)]
    assert at_rest[:2] == pytest.approx([0.0, -20.0], abs=1e-9) and at_rest[3] == 0.0


def test_collective_variables_by_hand(cup: MolecularSystem) -> None:
    """At rest, with the ligand moved by known amounts along the axes, turned about, and far away."""
    pocket, native = pocket_of(cup), cup.positions_nm
    moved, turned, far = native.copy(), native.copy(), native.copy()
    moved[pocket.ligand] += np.array([0.1, -0.2, 0.6]) @ pocket.axes
    turned[pocket.ligand] = native[pocket.ligand[::-1]]
    far[pocket.ligand] += 3.0 * pocket.axes[2]
    observables = make_observables(tuple(COORDINATES), cup, native)
    values = dict(zip(COORDINATES, values_of(observables, np.array([native, moved, turned, far])).T, strict=True))
    place = native[pocket.ligand].mean(axis=0)
    iron = native[len(cup_nm())]
    assert values["ligand_distance"][0] == pytest.approx(np.linalg.norm(place - iron), abs=1e-9)
    away = place + np.array([0.1, -0.2, 0.6]) @ pocket.axes - iron
    assert values["ligand_distance"][1] == pytest.approx(np.linalg.norm(away), abs=1e-9)
    assert values["ligand_displacement"] == pytest.approx([0, np.sqrt(0.41), 0, 3], abs=1e-9)
    assert [values[name][1] for name in ("ligand_across_1", "ligand_across_2", "ligand_outward")] == pytest.approx(
        [0.1, -0.2, 0.6]
    )
    assert values["pocket_contacts"][0] == pytest.approx(1 / (1 + np.exp(-4.0))) and values["pocket_contacts"][3] < 1e-4
    assert values["pocket_contacts_inner"][1] < values["pocket_contacts"][1] < 0.9  # the deeper contacts break first
    assert values["ligand_tilt"][2] == pytest.approx(-values["ligand_tilt"][0]) and values["ligand_rg"] == pytest.approx(0.16)
    lining = native[pocket.lining]
    assert values["pocket_radius"][0] == pytest.approx(np.sqrt(((lining - lining.mean(axis=0)) ** 2).sum(axis=1).mean()))


def test_bound_share_of_one_bead_in_a_rigid_receptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Langevin dynamics against quadrature of exp(-V / kT) over the tube, 4 standard errors; and the share asked for."""
    monkeypatch.setattr(protein_ligand, "MOBILE_NM", 0.0)
    system = protein_ligand.p450(
        SystemConfig(name="p450", pdb=str(write_complex(tmp_path / "one.pdb", n_ligand=4)), ligand="XYL")
    )
    pocket, native = pocket_of(system), system.positions_nm
    assert len(pocket.ligand) == 1
    engine = Engine(system, "Reference", 7, timestep_fs=20, friction_per_ps=1.0)
    step, ranges = 0.05, ((-1.2, 1.2), (-1.2, 1.2), (-0.75, mouth_nm(pocket, native) + 1.7))
    grid = np.stack(np.meshgrid(*(np.arange(low, high, step) for low, high in ranges), indexing="ij"), axis=-1).reshape(-1, 3)
    depth = float(system.description.rsplit("together ", 1)[1].split()[0])
    contacts = native[[i for i in range(len(native) - 1) if np.linalg.norm(native[i] - native[-1]) < 0.9]]
    pushing = native[repelling(pocket, native)]
    places = native[-1] + grid @ pocket.axes

    def apart(others: np.ndarray) -> np.ndarray:
        return np.linalg.norm(places[:, None] - others[None], axis=2)

    stretch = apart(contacts) - np.linalg.norm(contacts - native[-1], axis=1)
    beside, out = np.hypot(grid[:, 0], grid[:, 1]), grid[:, 2]
    end = mouth_nm(pocket, native) + 1.2
    walls = np.maximum(0, beside - 0.8) ** 2 + np.maximum(0, out - end) ** 2 + np.maximum(0, -0.3 - out) ** 2
    potential = (
        -depth * np.exp(-(stretch**2) / 0.045).mean(axis=1)
        + 8.0 * np.exp(-(apart(pushing) ** 2) / 0.125).sum(axis=1)
        + 250.0 * walls
    )
    weights = np.exp(-potential / system.kt_kj_mol)
    expected = float(weights[np.linalg.norm(grid, axis=1) < 0.4].sum() / weights.sum())
    assert expected == pytest.approx(0.4, abs=0.03)
    engine.set_positions(native, draw_velocities=True)
    frames = [block.positions_nm for block in engine.simulate(15_000, 50, block=5000)]
    share = values_of(make_observables(("ligand_displacement",), system, native), np.concatenate(frames))[:, 0] < 0.4
    blocks = share.reshape(30, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    assert error < 0.05 and abs(share.mean() - expected) < 4 * error


def events(displacement: np.ndarray) -> tuple[int, int, float]:
    """Unbindings, bindings, and the share of the time whose last core was the bound one."""
    core = np.where(displacement < 0.4, 0, np.where(displacement > 1.4, 1, -1))
    core[0] = 0
    last = core[np.maximum.accumulate(np.where(core >= 0, np.arange(len(core)), 0))]
    return int((np.diff(last) == 1).sum()), int((np.diff(last) == -1).sum()), float((last == 0).mean())


def test_it_binds_and_unbinds(cup: MolecularSystem) -> None:
    """Several times each way in 8 ns, at the temperature of the bath, with neither state rare."""
    engine = Engine(cup, "Reference", 3, timestep_fs=25, friction_per_ps=0.2)
    engine.set_positions(cup.positions_nm, draw_velocities=True)
    frames = next(engine.simulate(8000, 40, block=8000))
    displacement = values_of(make_observables(("ligand_displacement",), cup, cup.positions_nm), frames.positions_nm)[:, 0]
    unbound, bound, share = events(displacement)
    assert unbound >= 5 and bound >= 5 and 0.2 < share < 0.8
    kelvin = 2 * frames.kinetic_kj_mol.reshape(10, -1).mean(axis=1) / (engine.degrees_of_freedom * 0.00831446)
    assert abs(kelvin.mean() - 300) < 4 * kelvin.std(ddof=1) / np.sqrt(10) + 6  # steps of 25 fs make velocities 2 % too hot


@pytest.mark.parametrize("name", ["p450", "t4l-xylene"])
def test_presets_have_what_their_stages_need(name: str, made_up: Path) -> None:
    """Eight coordinates that the system has, states by one of them, an address for the structure, and long enough walkers."""
    config = load_config(name)
    assert config.system.pdb is not None and config.system.pdb.startswith("https://files.rcsb.org/download/")
    assert len(config.representation.cvs) == 8 and set(config.report.states.along) < set(config.representation.cvs)  # type: ignore[union-attr]
    assert config.reference.production_ps / config.reference.save_every_ps >= config.surrogate.n_frames  # type: ignore[union-attr]
    preflight.check(config, load_system(config.system.model_copy(update={"pdb": str(made_up)})))


@pytest.mark.skipif(not SMJ.is_file(), reason="needs 1SMJ beside the repository")
def test_a_published_p450() -> None:
    """1SMJ: chain A of four, 455 residues, haem and palmitoleate by the file's own lines; the pocket is at rest."""
    system = load_system(SystemConfig(name="p450", pdb=str(SMJ)))
    lines = [line for line in SMJ.read_text().splitlines() if line[:6] in ("ATOM  ", "HETATM") and line[21] == "A"]
    chosen = {
        "alpha": [line for line in lines if line[:4] == "ATOM" and line[12:16] == " CA "],
        "iron": [line for line in lines if line[12:16] == "FE  "],
        "ligand": [line for line in lines if line[17:20] == "PAM"],
    }
    at = {
        kind: np.array([[float(line[k : k + 8]) / 10 for k in (30, 38, 46)] for line in found])
        for kind, found in chosen.items()
    }
    assert len(at["alpha"]) == 455 and at["ligand"].shape == (18, 3)
    assert system.n_atoms == 455 + 5 + 4 and "chain A" in system.description and "ligand PAM as 4 beads" in system.description
    assert np.allclose(system.positions_nm[:455], at["alpha"]) and np.allclose(system.positions_nm[455], at["iron"][0])
    observables = make_observables(tuple(COORDINATES), system, system.positions_nm)
    values = dict(zip(observables, values_of(observables, system.positions_nm[None])[0], strict=True))
    assert values["ligand_distance"] == pytest.approx(np.linalg.norm(at["ligand"].mean(axis=0) - at["iron"][0]), abs=0.05)
    assert values["pocket_contacts"] == pytest.approx(1 / (1 + np.exp(-4.0))) and values["ligand_displacement"] < 1e-9
    engine = Engine(system, "Reference")
    before = float(engine.reduced_energy(system.positions_nm[None])[0])
    engine.set_positions(system.positions_nm)
    assert engine.minimise(200) / system.kt_kj_mol <= before + 1e-6
    native = system.positions_nm
    near = np.linalg.norm(native[:455, None] - native[None, -4:], axis=2).min(axis=1) < 1.0
    engine.set_positions(native, draw_velocities=True)
    engine.step(20)
    moved = np.linalg.norm(engine.positions_nm - native, axis=1) > 1e-6
    assert near.sum() == 51 and np.array_equal(moved, [*near, *[False] * 5, *[True] * 4])
    assert len(pocket_of(system).contacts) == 66


def test_lysozyme_of_openmmtools() -> None:
    """Its structure needs no file: 162 residues and p-xylene of two beads."""
    pytest.importorskip("openmmtools", reason="needs openmmtools")
    system = load_system(SystemConfig(name="t4l-xylene", ligand=None, pdb=None))
    assert system.n_atoms == 162 + 2 and "ligand TMP as 2 beads" in system.description
    assert "ligand_distance" in make_observables(("ligand_distance",), system, system.positions_nm)
