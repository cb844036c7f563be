"""What training draws, what it counts, and what it keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_molgen.config import GanConfig, TrainConfig, load_config
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.errors import HpcMolgenError, InputError
from hpc_molgen.representations.base import load_representation
from hpc_molgen.run import Run
from hpc_molgen.surrogates.base import load_surrogate
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.training.batches import BLOCK, Batches, TrainingSet
from hpc_molgen.training.checkpoint import GENERATIONS, load_checkpoint, newest_checkpoint, save_checkpoint
from hpc_molgen.training.distributed import ProcessGroup
from hpc_molgen.training.loop import Trainer
from hpc_molgen.training.speed import count_flops, matmul_flops_per_s
from hpc_molgen.training.stage import windows
from hpc_molgen.workers import Workers

CPU = torch.device("cpu")


def batches(share: slice, n: int, seed: int = 3) -> Batches:
    data = TrainingSet(torch.arange(50.0)[:, None], torch.ones(50))
    return Batches(data, DiffusionSurrogate(1, 0, hidden=8, depth=1), n, share, seed, CPU)


@pytest.mark.parametrize("n_ranks", [2, 3, 7])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(n_ranks: int) -> None:
    n = 2 * BLOCK + 37  # shares begin and end inside blocks
    items, noise = batches(slice(0, n), n).draw(5, 0, "score")
    drawn = [batches(ProcessGroup(rank, n_ranks, CPU).share(n), n).draw(5, 0, "score") for rank in range(n_ranks)]
    assert torch.equal(torch.cat([part for part, _ in drawn]), items)
    for number, values in enumerate(noise):
        assert len(values) == n and torch.equal(torch.cat([part[number] for _, part in drawn]), values)


def test_every_update_draws_anew() -> None:
    one = batches(slice(0, 64), 64)
    seen = [one.draw(step, number, "score")[0].tolist() for step in range(3) for number in range(2)]
    assert len({tuple(items) for items in seen}) == 6
    assert batches(slice(0, 64), 64, seed=4).draw(0, 0, "score")[0].tolist() != seen[0]


def test_blocks_draw_independently() -> None:
    """Correlation of uniform items in neighbouring blocks: 0 within five standard errors of 1/sqrt(n)."""
    items, _ = batches(slice(0, 40 * BLOCK), 40 * BLOCK).draw(0, 0, "score")
    pieces = items.double().reshape(40, BLOCK)
    first, second = pieces[:-1].flatten(), pieces[1:].flatten()
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / np.sqrt(len(first))


def test_items_are_drawn_by_weight() -> None:
    """Counts against the multinomial expectation: five standard errors, and never an item of weight zero."""
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0])
    chosen = TrainingSet(torch.zeros(5, 1), weights).choose(20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(chosen, minlength=5).double()
    p = weights.double() / 10
    assert counts[0] == counts[3] == 0
    assert ((counts - 20_000 * p).abs() <= 5 * torch.sqrt(20_000 * p * (1 - p))).all()


def test_windows_stay_inside_their_trajectory(tiny_run: Path) -> None:
    run = Run.open(tiny_run)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    system: MolecularSystem = run.system
    rng = np.random.default_rng(0)
    positions = system.positions_nm[None] + 0.001 * rng.standard_normal((30, system.n_atoms, 3))
    trajectory = np.repeat([4, 9, 2], [13, 9, 8])
    ensemble = Ensemble.create(system, positions, trajectory=trajectory)
    data = windows(ensemble, representation, 8)
    assert data.starts is not None
    assert data.starts.tolist() == [0, 4, 13, 22]
    angles = representation.encode(torch.as_tensor(positions))[:, : representation.n_torus]
    items = data.items(torch.tensor([1, 3]))
    assert items.shape == (2, 8, 2 * representation.n_torus + representation.n_euclidean)
    assert torch.equal(items[1, :, : representation.n_torus], torch.cos(angles[22:30]))
    with pytest.raises(InputError, match="longest reference trajectory has 13 frames"):
        windows(ensemble, representation, 14)


def test_operations_are_counted_through_both_orders_of_gradients() -> None:
    """A product of (10, 20) and (20, 30) takes 2 x 6000 operations, its two gradients as many each."""
    a, b = torch.randn(10, 20, requires_grad=True), torch.randn(20, 30, requires_grad=True)
    assert count_flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 6000
    convolution, x = torch.nn.Conv1d(3, 5, 4, stride=2), torch.randn(2, 3, 17)
    assert count_flops(lambda: convolution(x)) == 2 * 2 * 5 * 3 * 4 * 7

    def penalty() -> None:
        (gradient,) = torch.autograd.grad((torch.tanh(a @ b) ** 2).sum(), a, create_graph=True)
        gradient.square().sum().backward()

    # the product; its gradient in a; of that product two gradients, and two of the first one
    assert count_flops(penalty) == 6 * 2 * 6000
    assert 1e8 < matmul_flops_per_s(CPU, torch.float32, 0.01) < 1e13


def test_metrics_say_how_fast_and_how_well(tmp_path: Path) -> None:
    data = TrainingSet(torch.randn(500, 3), torch.ones(500))
    config = TrainConfig(n_steps=6, batch_size=64, log_every=2, validate_every=3)
    seen: list[int] = []
    group = ProcessGroup(0, 1, CPU)
    trainer = Trainer(DiffusionSurrogate(1, 2, hidden=8, depth=1), config, data, data, tmp_path, group, 1, seen.append)
    trainer.run()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [record for record in records if "loss" in record]
    assert [record["step"] for record in logged] == [2, 4, 6] and seen == list(range(7))
    for record in logged:
        assert record["samples_per_s"] == pytest.approx(64 / record["step_s"])
        assert 0 < record["data_wait_share"] < 1 and 0 < record["flop_utilisation"] < 1
        assert record["loss"] == record["loss_score"] and record["gradient_norm_score"] > 0
    assert [record["step"] for record in records if "held_out_loss" in record] == [3, 6]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_learning_rate_warms_up_and_follows_its_schedule(schedule: str, tmp_path: Path) -> None:
    data = TrainingSet(torch.randn(50, 1), torch.ones(50))
    config = TrainConfig.model_validate({"n_steps": 100, "warmup_steps": 10, "learning_rate": 1e-3, "schedule": schedule})
    trainer = Trainer(DiffusionSurrogate(1, 0, hidden=8, depth=1), config, data, data, tmp_path, ProcessGroup(0, 1, CPU), 1)
    rates = []
    for step in range(100):
        trainer.step = step
        rates.append(trainer._learning_rate())
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(100) / 100)) if schedule == "cosine" else np.ones(100)
    assert rates == pytest.approx(1e-3 * np.minimum(1, np.arange(1, 101) / 10) * cosine)


def test_two_generations_of_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step})
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint-00000002.pt", "checkpoint-00000003.pt"]
    assert len(list(tmp_path.iterdir())) == 2 * GENERATIONS
    assert newest_checkpoint(tmp_path) == 3 and load_checkpoint(tmp_path, 3) == {"step": 3}
    (tmp_path / "checkpoint-00000003.sha256").unlink()
    assert newest_checkpoint(tmp_path) == 2
    (tmp_path / "checkpoint-00000002.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    config, group = TrainConfig(n_steps=2, batch_size=8), ProcessGroup(0, 1, CPU)

    def trainer(n: int) -> Trainer:
        data = TrainingSet(torch.randn(n, 1), torch.ones(n))
        return Trainer(DiffusionSurrogate(1, 0, hidden=8, depth=1), config, data, data, tmp_path, group, 1)

    trainer(50)._save()
    with pytest.raises(InputError, match="of other data"):
        trainer(51).run()


def test_a_gan_trains_in_the_pipeline(tiny_run: Path, tmp_path: Path) -> None:
    """Plain MD of torsions -> windows -> a surrogate of trajectories; biased MD has no kinetics to learn."""
    from hpc_molgen.pipeline import run_stages

    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    settings = ["surrogate={name: gan, n_frames: 16, hidden: 8}", "train.n_steps=3", "train.batch_size=32"]
    run = Run(folder, load_config("tiny", settings), Run.open(folder).workers)
    with pytest.raises(InputError, match="kinetics of plain MD"):
        run_stages(run, ["train"])
    plain = ["reference={n_walkers: 2, production_ps: 2, equilibration_ps: 0.2, save_every_ps: 0.02}"]
    run = Run(tmp_path / "plain", load_config("tiny", settings + plain), run.workers)
    run.directory.mkdir()
    run_stages(run, ["reference", "featurize", "train"])
    trained = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
    series, log_q = trained.sample(2, 1)
    assert series.shape[:2] == (2, 16) and log_q is None
    assert run.details("train")["n_items"] == (100 - 16) // 8 + 1


def test_settings_of_another_surrogate_are_errors_that_list_the_right_ones() -> None:
    with pytest.raises(InputError) as caught:
        load_config("tiny", ["surrogate={name: gan, depht: 3}"])
    assert "surrogate.depht: unknown key" in str(caught.value) and "critic_updates" in str(caught.value)
    with pytest.raises(InputError) as caught:
        load_config("tiny", ["surrogate.hiden=3"])
    assert "surrogate.hiden: unknown key (did you mean 'hidden'?)" in str(caught.value) and "harmonics" in str(caught.value)
    with pytest.raises(
        InputError, match=r"surrogate\.name: there is no 'vae'; there are: 'diffusion', 'transferable', 'flow', 'gan'"
    ):
        load_config("tiny", ["surrogate.name=vae"])
    with pytest.raises(InputError, match=r"surrogate\.n_frames: .*greater than or equal to 4"):
        load_config("tiny", ["surrogate={name: gan, n_frames: 2}"])
    assert isinstance(load_config("tiny", ["surrogate={name: gan}"]).surrogate, GanConfig)


def test_stages_that_need_structures_refuse_a_surrogate_of_trajectories(tmp_path: Path) -> None:
    from hpc_molgen.pipeline import run_stages

    run = Run(tmp_path, load_config("tiny", ["surrogate={name: gan}"]), Workers())
    with pytest.raises(InputError, match=r"set representation\.name to cvs"):
        run_stages(run)


def poisoned(directory: Path, at: list[int], monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A trainer whose weights become nan after the steps that are listed, each once."""
    torch.manual_seed(1)
    data = TrainingSet(torch.randn((200, 2), generator=torch.Generator().manual_seed(2)), torch.ones(200))
    config = TrainConfig(n_steps=40, batch_size=16, log_every=5, validate_every=40, warmup_steps=1, schedule="constant")
    surrogate = DiffusionSurrogate(2, 0, hidden=8, depth=1)
    trainer = Trainer(surrogate, config, data, data, directory, ProcessGroup(0, 1, CPU), 3)
    plain, left = trainer.train_step, list(at)

    def step() -> None:
        plain()
        if trainer.step in left:
            left.remove(trainer.step)
            with torch.no_grad():
                trainer.parts["score"].parameters[0].fill_(float("nan"))

    monkeypatch.setattr(trainer, "train_step", step)
    return trainer


def test_a_training_that_diverges_is_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the newest sound checkpoint at half the learning rate, or to the start where there is none; told in the metrics."""
    trainer = poisoned(tmp_path, [11, 27], monkeypatch)
    saves = iter([20])
    due, plain = next(saves), Trainer._log

    def log(self: Trainer, speed: object) -> None:
        plain(self, speed)  # type: ignore[arg-type]
        if self.step == due and self.rollbacks:
            self._save()

    monkeypatch.setattr(Trainer, "_log", log)
    averaged = trainer.run()
    assert all(bool(parameter.isfinite().all()) for parameter in averaged.parameters()) and trainer.step == 40
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [(r["step"], r["diverged_at"], r["rollbacks"]) for r in records if "diverged_at" in r]
    assert told == [(0, 15, 1), (20, 30, 2)]
    assert [r["learning_rate"] for r in records if "learning_rate" in r] == pytest.approx([1e-3] * 4 + [5e-4] * 4)
    assert caplog.text.count("training diverged") == 2 and "rolled back to step 0, at 0.5 times" in caplog.text
    state = load_checkpoint(tmp_path, newest_checkpoint(tmp_path) or 0)
    assert state["step"] == 20 and state["rollbacks"] == 1


def test_a_training_that_diverges_again_and_again_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = poisoned(tmp_path, [2, 2, 2, 2], monkeypatch)
    with pytest.raises(HpcMolgenError, match=r"diverged \(loss nan\) at step 5, 3 times rolled back: lower train\.learning"):
        trainer.run()
    assert newest_checkpoint(tmp_path) is None


class Graded(DiffusionSurrogate):
    """Its distance from held-out items is as scripted, by validation."""

    grades = (5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 9.0, 1.0)
    asked = 0

    def held_out_distance(self, batch: torch.Tensor, seed: int) -> float:  # noqa: ARG002
        self.asked += 1
        return self.grades[self.asked - 1]


def graded(directory: Path, patience: int | None) -> Trainer:
    torch.manual_seed(1)
    data = TrainingSet(torch.randn((200, 2), generator=torch.Generator().manual_seed(2)), torch.ones(200))
    config = TrainConfig(n_steps=16, batch_size=16, validate_every=2, warmup_steps=1, patience=patience)
    return Trainer(Graded(2, 0, hidden=8, depth=1), config, data, data, directory, ProcessGroup(0, 1, CPU), 3)


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(tmp_path: Path) -> None:
    """Best at step 8 (an equal value later is no better); two validations on, at step 12, training ends with that state."""
    after: dict[int, dict[str, torch.Tensor]] = {}
    for directory in (tmp_path / "a", tmp_path / "b", tmp_path / "c"):
        directory.mkdir()
    trainer = graded(tmp_path / "a", 2)
    plain = trainer._average

    def average() -> None:
        plain()
        after[trainer.step + 1] = {name: value.clone() for name, value in trainer.ema.state_dict().items()}

    trainer._average = average  # type: ignore[method-assign]
    kept = trainer.run().state_dict()
    assert trainer.step == 12 and trainer.kept_step == 8
    assert all(torch.equal(kept[name], value) for name, value in after[8].items())
    assert not all(torch.equal(kept[name], value) for name, value in after[12].items())
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [r["held_out_distance"] for r in records if "held_out_distance" in r] == list(Graded.grades[:6])
    every = graded(tmp_path / "b", None)
    every.run()
    assert every.step == every.kept_step == 16

    stopped = graded(tmp_path / "c", 2)  # and so it ends when it is interrupted after the best validation
    stopped.batches.start(0)
    for _ in range(10):
        stopped.train_step()
        stopped.step += 1
        if stopped.step % 2 == 0:
            stopped._judge()
    stopped._save()
    resumed = graded(tmp_path / "c", 2)
    resumed.ema.asked = 5
    again = resumed.run().state_dict()
    assert resumed.step == 12 and resumed.kept_step == 8
    assert all(torch.equal(kept[name], value) for name, value in again.items())
