"""The configuration: defaults, assignments, and all errors at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_molgen.config import dump_config, load_config, preset_names
from hpc_molgen.errors import InputError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_dumps_to_itself(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config


def test_three_errors_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("train: {n_step: 5, batch_size: -1}\nreference: {n_walkers: many}\n")
    with pytest.raises(InputError) as error:
        load_config(str(path))
    message = str(error.value)
    assert "3 error(s)" in message
    assert "did you mean 'n_steps'" in message and "warmup_steps" in message  # the right keys are listed
    assert "train.batch_size" in message and "reference.n_walkers" in message


def test_assignments_change_one_setting() -> None:
    config = load_config("tiny", ["train.n_steps=7", "representation.torsions=[phi]", "farm.pressure_bar=null"])
    assert (config.train.n_steps, config.representation.torsions, config.farm.pressure_bar) == (7, ("phi",), None)


@pytest.mark.parametrize("assignment", ["train.n_steps", "=3", "name.x=1", "train.n_steps=[", "nonsense.key=1"])
def test_bad_assignments_are_input_errors(assignment: str) -> None:
    with pytest.raises(InputError):
        load_config("tiny", [assignment])


@pytest.mark.parametrize("text", ["- a\n- b\n", "train: [", "\x00\x01"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"broken\.yaml"):
        load_config(str(path))


def test_weights_without_a_density_are_refused() -> None:
    with pytest.raises(InputError, match="needs ln q"):
        load_config("tiny", ["sample.sampler=ancestral"])
    assert load_config("tiny", ["sample.sampler=ancestral", "sample.log_density=false", "correct.weights=false"])


@pytest.mark.parametrize(
    ("assignment", "word"),
    [
        ("reference.constraints=hbonds", "do not vibrate"),
        ("reference.held_out_fraction=0.05", "none for validation"),
        ("farm.pressure_bar=1.0", "explicit solvent"),
        ("reference.tempering_kelvin=[290]", "must ascend"),
        ("reference.tempering_kelvin=[400]", "exclude each other"),
    ],
)
def test_settings_that_contradict_each_other(assignment: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        load_config("tiny", [assignment])


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(InputError, match="alanine-dipeptide"):
        load_config("alanine")
