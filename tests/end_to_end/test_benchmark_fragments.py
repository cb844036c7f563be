"""The suite `fragments`: a real run at its smallest size, and what it says of figures that are known."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_molgen.angles import wrap
from hpc_molgen.efficiency.suites import fragments_tables as tables
from hpc_molgen.efficiency.suites.fragments import MAIN, fragments
from hpc_molgen.efficiency.suites.fragments_cage import TRP_CAGE, build
from hpc_molgen.efficiency.suites.fragments_scores import HELIX, PPII, RIGHT, Found, Judge, effective, indicators
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.errors import InputError
from hpc_molgen.systems.torsions import named_torsions, torsion_angles
from tests.conftest import CommandLine

PDB = Path(__file__).parents[3] / "shared" / "data" / "pdb" / "1l2y.pdb"


@pytest.fixture(scope="module")
def smoke(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("fragments")
    ended = command("benchmark", "fragments", "--size", "smoke", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert "**Shares of basins**" in (out / "fragments-smoke.md").read_text()
    record: dict[str, Any] = json.loads((out / "fragments-smoke.json").read_text())
    return record


def test_every_method_has_figures_and_pays_for_everything(smoke: dict[str, Any]) -> None:
    results, costs = smoke["results"], {cost["stage"]: cost["cpu_s"] for cost in smoke["costs"]}
    assert list(results["methods"]) == [tables.RAW, MAIN.name, tables.TEMPERING, "gain"]
    joined, tempered, raw = (results["methods"][name] for name in (MAIN.name, tables.TEMPERING, tables.RAW))
    for row in (joined, tempered, raw):
        assert row["over_floor"]["n"] == 2 and row["over_floor"]["mean"] > 0 and len(row["divergence_nats"]) == 3
        assert row["worst_difference"]["mean"] >= 0 and len(row["shares"][HELIX]) == 3
    assert joined["cpu_s"]["mean"] > joined["sampling_cpu_s"]["mean"] > 0  # libraries are in the former
    for own, other in zip(joined["cpu_s"]["values"], tempered["cpu_s"]["values"], strict=True):
        assert own <= other < 1.5 * own + 0.5
    assert joined["seeds_apart"] > 0 and tempered["seeds_apart"] > 0
    assert set(joined["acceptance"]) == {"1", "2", "3", "1-2", "2-3"}
    assert all(0 <= share["mean"] <= 1 for share in joined["acceptance"].values())
    assert 0 < raw["ess_fraction"]["mean"] < 1 and "n_effective" not in raw
    assert any("the reference" in stage for stage in costs) and min(costs.values()) >= 0
    assert set(results["ways"]) == {MAIN.name} and results["ways"][MAIN.name]["energies_per_cpu_s"] > 0


def test_the_compact_molecule_is_compared_from_both_starts(smoke: dict[str, Any]) -> None:
    cage = smoke["results"]["cage"]
    assert cage["windows"] == ["GLY-PRO", "PRO-SER", "SER-SER"] and set(cage["starts"]) == {"folded", "unfolded"}
    for found in cage["starts"].values():
        assert {"1-2", "2-3", "3-4", "4, backbone", "4, side chain"} <= set(found["acceptance"])
        assert "1, backbone" not in found["acceptance"]  # glycine has no side chain: its residue is its backbone
        assert all(found["far"][name] <= share for name, share in found["acceptance"].items())
        assert found["md"]["cpu_s"] >= found["moves"]["cpu_s"] > 0 and found["md"]["ps_per_copy"] > 0
        for row in (found["moves"], found["md"]):
            assert 0 <= row["residues_turned"] <= 4
    assert [row[0] for row in smoke["tables"][3]["rows"]] == ["1-2 GLY-PRO", "2-3 PRO-SER", "3-4 SER-SER"]


def test_sentences_follow_the_figures(smoke: dict[str, Any]) -> None:
    results = copy.deepcopy(smoke["results"])
    gain, cage = results["methods"]["gain"], results["cage"]
    for values, words in (([9.0, 10.0, 11.0], "pays ("), ([0.1, 0.2, 0.15], "does not pay ("), ([0.5, 2.0, 1.0], "is level")):
        gain["slowest"] = spread(values)
        assert any(words in sentence for sentence in tables.record_of(results, "laptop")["answer"])
    gain["slowest"] = None
    assert any("has not seen all basins" in sentence for sentence in tables.record_of(results, "laptop")["answer"])
    assert not tables.record_of(results, "laptop")["targets"][2]["reached"]
    folded = cage["starts"]["folded"]
    folded["moves"] |= {"per_cpu_s": 10.0, "per_cpu_s_error": 1.0, "cpu_s": 50.0}
    folded["md"] |= {"per_cpu_s": 4.0, "per_cpu_s_error": 1.0}
    for library_cpu_s, words in ((10.0, "pieces pay."), (100.0, "pieces pay once the libraries are there.")):
        cage["library_cpu_s"] = library_cpu_s
        sentence = next(text for text in tables.record_of(results, "laptop")["answer"][1:] if "GPSS, folded" in text)
        assert sentence.endswith(words) and "more than the 4" in sentence
    folded["moves"]["per_cpu_s"] = 1.0
    sentence = next(text for text in tables.record_of(results, "laptop")["answer"][1:] if "GPSS, folded" in text)
    assert sentence.endswith("pieces do not pay.") and "fewer than" in sentence


def test_a_judge_knows_its_own_reference_and_what_is_far_from_it() -> None:
    """Independent frames: all count; another half of them is near, one basin alone is not."""
    generator = np.random.default_rng(1)
    centres = np.radians([[-65.0, -40.0], [-70.0, 145.0], [55.0, 45.0]])
    basins = generator.choice(3, p=[0.6, 0.3, 0.1], size=(400, 20, 2))
    angles = wrap(centres[basins] + generator.normal(0, 0.15, (400, 20, 2, 2)))
    inside = indicators(angles)
    assert {name: float(found.mean()) for name, found in inside.items()} == pytest.approx(
        {HELIX: 0.6, PPII: 0.3, RIGHT: 0.1}, abs=0.02
    )
    judge = Judge(angles[:, :10])
    near, far = (judge.row(Found("", x, 2.0, 1.0)) for x in (angles[:, 10:], np.broadcast_to(angles[:1], angles.shape)))
    assert near["worst_difference"] < 4 < far["over_floor"] and near["over_floor"] < 1.5
    assert near["n_effective"][HELIX] == pytest.approx(4000, rel=0.25)
    assert near["effective_per_cpu_s"][HELIX] == pytest.approx(near["n_effective"][HELIX] / 2)
    assert effective(np.ones((10, 4))) == 0


def test_seeds_apart_tells_errors_that_are_too_small() -> None:
    """Independent frames give about one (12 seeds, four standard errors); all copies of a seed alike, as many times more."""
    generator = np.random.default_rng(2)
    centres = np.radians([[-65.0, -40.0], [-70.0, 145.0], [55.0, 45.0]])

    def angles(*shape: int) -> np.ndarray:
        basins = generator.choice(3, p=[0.6, 0.3, 0.1], size=shape)
        return wrap(centres[basins] + generator.normal(0, 0.1, (*basins.shape, 2)))

    judge = Judge(angles(400, 16, 2))
    fair = [[Found(name, angles(50, 16, 2), 1.0, 1.0) for name in ("raw", "joined", "tempered")] for _ in range(12)]
    assert judge.methods(fair)["joined"]["seeds_apart"] == pytest.approx(1, abs=4 * np.sqrt(1 / (2 * 11 * 4)))
    # half of the frames of a seed are one draw that all of its copies share
    alike = [
        [Found(name, np.concatenate([angles(25, 16, 2), np.repeat(angles(1, 1, 2), 25, axis=0).repeat(16, axis=1)]), 1.0, 1.0)
         for name in ("raw", "joined", "tempered")]
        for _ in range(12)
    ]  # fmt: skip
    assert judge.methods(alike)["joined"]["seeds_apart"] > 4


def test_trp_cage_is_built_from_its_torsions() -> None:
    """C-alpha atoms within 0.06 nm of 1L2Y's where it is at hand, and torsions near those of the table after minimisation."""
    system = build(TRP_CAGE)
    for kind, asked in (("phi", TRP_CAGE.phi_deg), ("psi", TRP_CAGE.psi_deg)):
        quads = named_torsions(system.topology)[kind]
        off = [
            wrap(torsion_angles(system.positions_nm, quad) - np.radians(value))
            for quad, value in zip(quads, asked, strict=True)
            if value is not None
        ]
        assert np.sqrt(np.mean(np.square(off))) < np.radians(20)
    if not PDB.is_file():
        pytest.skip("the torsions are right; the comparison with 1L2Y needs the file beside the repository")
    import mdtraj

    native = mdtraj.load(str(PDB), frame=0)
    own = mdtraj.Trajectory(system.positions_nm[None].astype(np.float32), system.topology)
    parts = [part.atom_slice(part.topology.select("name CA")) for part in (own, native)]
    assert mdtraj.rmsd(*parts)[0] < 0.06


def test_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'fragments' has no size 'huge'; it has: smoke, laptop, cluster"):
        fragments("huge", tmp_path, 1)
