"""The suites `trajectories` and `peers` in their smallest size, which share runs, and the parts whose answers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_molgen.config import load_config
from hpc_molgen.efficiency.series_findings import GENERATED, MARKOV, TRAIN
from hpc_molgen.efficiency.suites import suite_function, trajectories_tables
from hpc_molgen.efficiency.suites.peers import SIZES
from hpc_molgen.efficiency.suites.peers_dynamics import Exchange, openmmtools_exchange, openmmtools_version, own_exchange
from hpc_molgen.efficiency.suites.peers_series import NETWORK, PUBLISHED
from hpc_molgen.efficiency.suites.peers_structures import Judge, effective_samples, exact_map, markov_draw, rigid_energies
from hpc_molgen.efficiency.suites.peers_tables import exchange_gain, vacuum_agrees
from hpc_molgen.efficiency.suites.trajectories_md import NumpyWells
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.surrogates.base import surrogate_class
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.triple_well import reduced_energy
from tests.conftest import CommandLine


def read(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return record, (folder / f"{name}.md").read_text()


@pytest.fixture(scope="module")
def smoke(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("peers")
    for suite in ("trajectories", "peers"):
        ended = command("benchmark", suite, "--size", "smoke", "--out", str(out))
        assert ended.returncode == 0, ended.stderr
    return out


def test_trajectories_are_judged_and_not_praised(smoke: Path) -> None:
    record, text = read(smoke, "trajectories-smoke")
    results = record["results"]
    assert len(results["seeds"]) == 2 and not any(row["certified"] for row in results["seeds"])
    assert "not certified" in text and "times as many as MD" not in text  # no speed-up behind a failed gate
    for label in ("md", "numpy", "generator", "markov", "autoregression"):
        assert results["speeds"][label]["per_cpu_s"]["n"] == 3 and results["speeds"][label]["per_cpu_s"]["mean"] > 0
    assert results["quality"][TRAIN]["divergence_over_floor"]["values"] == [1.0, 1.0]
    assert results["quality"][GENERATED]["score"]["mean"] > results["quality"][MARKOV]["score"]["mean"] > 0
    assert list(results["lengths"]) == ["128", "1000"]
    trained = [cost for cost in record["costs"] if cost["stage"].endswith(": train")]
    assert [cost["core_h"] * 3600 for cost in trained] == pytest.approx([cost["cpu_s"] for cost in trained])
    assert record["load"]["n"] >= 1 and record["load"]["others_busy_cores"]["max"] >= 0


def test_no_ratio_is_below_its_floor(command: CommandLine, smoke: Path) -> None:
    floors = Path(__file__).resolve().parents[2] / "benchmarks" / "floors.yaml"
    guard = command("benchmark", "guard", str(floors), str(smoke / "trajectories-smoke.json"))
    assert guard.returncode == 0, guard.stdout + guard.stderr
    assert guard.stdout.count("| ok |") == 2


def test_where_the_gate_is_passed_the_price_is_printed(smoke: Path) -> None:
    results = read(smoke, "trajectories-smoke")[0]["results"]
    for row in results["seeds"]:
        row["certified"] = True
    results["bill"] |= {"data_cpu_s": {"mean": 10.0, "sd": 0.0, "n": 1}, "training_cpu_s": {"mean": 90.0, "sd": 0.0, "n": 1}}
    for label, rate in (("md", 500.0), ("numpy", 1000.0), ("generator", 5000.0)):
        results["speeds"][label]["per_cpu_s"] |= {"mean": rate, "sd": 0.0, "values": [rate] * 3}
    assert trajectories_tables.pays_from(results) == pytest.approx(100 / (1 / 1000 - 1 / 5000))  # of the faster MD: 125,000
    own = trajectories_tables.record_of(results, "laptop")
    assert any("5 ± 0 times as many as the fastest MD (molecular dynamics, numpy" in sentence for sentence in own["answer"])
    assert any("cheaper from 125,000 frames on" in sentence for sentence in own["answer"])
    results["speeds"]["generator"]["per_cpu_s"]["mean"] = 900.0
    assert "cheaper never." in trajectories_tables.record_of(results, "laptop")["answer"][-1]
    results["speeds"]["generator"]["per_cpu_s"]["mean"], results["bill"]["on_gpu"] = 5000.0, True
    assert trajectories_tables.pays_from(results) is None  # CPU seconds do not hold the GPU's time


def test_the_loop_of_numpy_samples_the_boltzmann_distribution() -> None:
    """Share of the middle well and of one step's variance against quadrature and 2 D dt, by four standard errors."""
    n, timestep_ps, diffusion = 4000, 0.05, 0.1
    wells = NumpyWells(n, timestep_ps, diffusion, 300.0, 1)
    before = wells.positions_nm.copy()
    wells.step(1)
    kick = wells.positions_nm - before  # from the middle of a well, where the slope is small
    assert kick.var() == pytest.approx(2 * diffusion * timestep_ps, rel=4 * np.sqrt(2 / kick.size) + 0.01)
    wells.step(16_000)  # 800 ps, seventeen of the slowest times: copies have forgotten their wells
    share = (np.abs(wells.positions_nm.sum(axis=0)) / np.sqrt(2) < 1.03).mean()
    grid = np.linspace(-4, 4, 401)
    x, y = np.meshgrid(grid, grid)
    weight = np.exp(-reduced_energy(x, y))
    expected = weight[np.abs(x + y) / np.sqrt(2) < 1.03].sum() / weight.sum()
    # the Euler-Maruyama scheme's own error at this step is within a hundredth (facts/md.md has the same step in OpenMM)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 0.01


def test_speeds_of_peers_are_compared_where_they_sample_the_same() -> None:
    def row(share: float, rate: float) -> dict[str, Any]:
        return {"alphar_share": {"mean": share, "sd": 0.05, "n": 3}, "ns_per_core_day": {"mean": rate, "sd": 0.0, "n": 3}}

    dynamics = {"md": row(0.40, 1.0), "openmmtools": row(0.45, 10.0), "own exchange": row(0.38, 500.0)}
    assert exchange_gain(dynamics) == pytest.approx(50)
    assert exchange_gain({**dynamics, "own exchange": row(0.70, 500.0)}) is None
    assert exchange_gain({**dynamics, "openmmtools": row(0.10, 10.0)}) is None
    assert vacuum_agrees({"jsd_60": 0.03, "jsd_60_floor": 0.05}) and not vacuum_agrees({"jsd_60": 0.08, "jsd_60_floor": 0.05})


def test_peers_are_measured_by_one_code(smoke: Path) -> None:
    record, text = read(smoke, "peers-smoke")
    results = record["results"]
    structures = results["structures"]
    assert structures["published"]["n_parameters"]["mean"] == 363_266  # as published: facts/peers.md, section A
    for method in ("published", "published weighted", "ours", "ours weighted", "markov", "md"):
        assert structures[method]["jsd_60"]["n"] == SIZES["smoke"].walkers.n_groups - 1
    for method in ("published weighted", "ours weighted"):
        assert 0 < structures[method]["ess_fraction"]["mean"] <= 1
    assert set(results["series"]["quality"]) >= {GENERATED, MARKOV, PUBLISHED}
    assert results["series"]["quality"][PUBLISHED]["transitions_over_md"]["mean"] < 0.5  # it does not move after five updates
    assert "published trajectory GAN" in text and "weights exp(-E/kT) as published" in text
    trained = [path.parent.parent.name for path in (smoke / "series-smoke" / "runs").glob("*/train/done.json")]
    assert sorted(trained) == ["published-1", "published-2", "triple-well-1", "triple-well-2"]  # ours once for both suites


@pytest.mark.skipif(shutil.which("gmx") is None, reason="needs GROMACS (gmx), which is not installed")
def test_gromacs_takes_part(smoke: Path) -> None:
    vacuum = read(smoke, "peers-smoke")[0]["results"]["vacuum"]
    assert vacuum["energy_error_kj_mol"] < 0.01 and vacuum["n_frames"] >= 60
    assert vacuum["batched_over_gromacs"]["n"] == 3 and vacuum["batched_over_gromacs"]["mean"] > 1


@pytest.mark.skipif(openmmtools_version() is None, reason="needs openmmtools")
def test_openmmtools_samples_the_same_ensemble(alanine: MolecularSystem, tmp_path: Path) -> None:
    """Mean of cos(psi) at 300 K of two programs' ladders from one start: apart by less than four standard errors."""
    settings = Exchange(n_temperatures=2, hottest_kelvin=400.0, n_swaps=100, swap_every_ps=0.2)
    theirs = np.concatenate(
        [openmmtools_exchange(alanine, settings, seed, tmp_path).angles_rad for seed in range(3)]
    )  # fmt: skip
    ours = own_exchange(alanine, settings, 1).angles_rad
    assert theirs.shape == (3, 90, 2) and ours.shape == (8, 90, 2)
    means = [np.cos(angles[:, :, 1]).mean(axis=1) for angles in (theirs, ours)]
    error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in means))
    assert abs(means[0].mean() - means[1].mean()) < 4 * error


def test_a_run_without_openmmtools_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert openmmtools_version() is None


def test_the_exact_map_is_that_of_the_energies(alanine: MolecularSystem) -> None:
    """Probabilities of two bins by hand from the energies of their middles."""
    found = exact_map(alanine, 60)
    centres = (np.arange(60) + 0.5) / 60 * 2 * np.pi - np.pi
    mass = []
    for i, j in ((16, 50), (20, 20)):
        mass.append(float(np.exp(-rigid_energies(alanine, np.array([[centres[i], centres[j]]])))[0]))
    assert found.sum() == pytest.approx(1) and found[16, 50] / found[20, 20] == pytest.approx(mass[0] / mass[1], rel=1e-6)


def test_weights_that_leave_out_q_miss_the_map_that_they_mean(alanine: MolecularSystem) -> None:
    """Samples of the exact map: weights exp(-E/kT) square it, exp(-E/kT) / q leave it as it is."""
    n = 40_000
    rigid = exact_map(alanine, 60)
    generator = numpy_generator(1, "rigid")
    bins = generator.choice(3600, n, p=rigid.ravel())
    angles = (np.stack(np.divmod(bins, 60), axis=1) + 0.5) / 60 * 2 * np.pi - np.pi
    judge = Judge(angles, 0.01, rigid)
    log_p = np.log(rigid.ravel()[bins])
    right, wrong = judge.score(angles, np.zeros(n)), judge.score(angles, log_p)
    squared = rigid**2 / (rigid**2).sum()
    middle = (squared + rigid) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = 0.5 * sum(np.nansum(p * np.log(p / middle)) for p in (squared, rigid))
    assert right["jsd_from_rigid"] < 0.005 and right["ess_fraction"] == pytest.approx(1)
    assert wrong["jsd_from_rigid"] == pytest.approx(expected, rel=0.1) and expected > 0.05


def test_a_markov_state_model_emits_frames_of_its_data() -> None:
    generator = numpy_generator(1, "walkers")
    walkers = np.cumsum(0.3 * generator.standard_normal((4, 600, 2)), axis=1)
    walkers = (walkers + np.pi) % (2 * np.pi) - np.pi
    angles, facts = markov_draw(walkers, 500, 1)
    own = walkers.reshape(-1, 2)
    nearest = np.abs(np.angle(np.exp(1j * (angles[:, None] - own[None])))).max(axis=2).min(axis=1)
    assert angles.shape == (500, 2) and nearest.max() < 1e-5 and facts["slowest_frames"] > 1


def test_effective_samples_of_a_known_process() -> None:
    """Of alphaR's share in a chain that stays with probability 0.9 or draws anew: g = (1 + 0.9) / (1 - 0.9) = 19."""
    generator = numpy_generator(2, "chain")
    n, length = 40, 2000
    inside = np.empty((n, length), bool)
    inside[:, 0] = generator.random(n) < 0.5
    for frame in range(1, length):
        stays = generator.random(n) < 0.9
        inside[:, frame] = np.where(stays, inside[:, frame - 1], generator.random(n) < 0.5)
    angles = np.stack([np.full(inside.shape, -1.2), np.where(inside, -0.7, 2.5)], axis=2)
    assert effective_samples(angles) == pytest.approx(n * length / 19, rel=0.15)


def test_the_published_gan_is_as_described() -> None:
    """Sixteen times narrower than published: latent 128, then 128, 256, 512 and 2,000 frames of two features."""
    config = load_config("triple-well", list(NETWORK))
    sizes = config.surrogate.model_dump(exclude={"name", "windows", "time_bins"})
    assert sizes["architecture"] == "perceptron" and sizes["critic_updates"] == 5 and sizes["gradient_penalty"] == 10
    assert config.train.learning_rate == 1e-4 and config.train.batch_size == 32 and config.train.ema_decay == 0
    layers = ((128, 128), (128, 256), (256, 512), (512, 4000), (4000, 512), (512, 256), (256, 128))
    expected = sum(a * b + b for a, b in layers) + 128  # the last layer has no bias
    surrogate = surrogate_class("gan")(**sizes, n_channels=2)
    assert sum(parameter.numel() for parameter in surrogate.parameters()) == expected


@pytest.mark.parametrize("suite", ["trajectories", "peers"])
def test_the_suites_name_their_sizes(suite: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smoke, laptop, cluster"):
        suite_function(suite)("huge", tmp_path, 1)
