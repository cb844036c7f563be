"""Site files, the jobs planned from them, and the scripts that would be submitted: all that needs no cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from hpc_molgen.config import load_config
from hpc_molgen.errors import InputError
from hpc_molgen.launch.plan import plan_jobs
from hpc_molgen.launch.site import SITES, SiteConfig, Stage, load_site
from hpc_molgen.launch.submit import _local_file_system, submit_stages
from hpc_molgen.run import STAGES, Run
from hpc_molgen.workers import Workers

Command = Callable[..., subprocess.CompletedProcess[str]]


def write_site(folder: Path, **values: object) -> str:
    path = folder / "site.yaml"
    path.write_text(json.dumps(values))
    return str(path)


def dry_run(folder: Path, *stages: str, **site: object) -> dict[str, str]:
    """The script of each job by its first comment."""
    out = folder / "run"
    texts = list(submit_stages(load_config("tiny"), write_site(folder, **site), out, stages or tuple(STAGES), dry_run=True))
    assert not out.exists()
    return {text.splitlines()[0].removeprefix("# ---- "): text for text in texts}


def test_every_key_of_a_site_is_in_the_generic_file_with_its_default() -> None:
    text = (SITES / "generic.yaml").read_text()
    assert [name for name in SiteConfig.model_fields if not re.search(rf"^{name}:", text, re.MULTILINE)] == []
    assert load_site("generic") == SiteConfig()
    assert get_args(Stage) == tuple(STAGES)


@pytest.mark.parametrize("name", ["gpu-a100-constraint", "gpu-h100-partition"])
def test_a_gpu_site_has_to_be_filled_in_and_then_works(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="still to be filled in for your site"):
        load_site(name)
    text = (SITES / f"{name}.yaml").read_text().replace("container: FILL-IN", f"container: {tmp_path}/i.sif")
    (tmp_path / "i.sif").touch()
    (tmp_path / "site.yaml").write_text(text.replace("FILL-IN", "mine"))
    site = load_site(str(tmp_path / "site.yaml"))
    train = site.job("train")
    assert train.n_gpus == 4 == train.tasks_per_node and train.nodes == 2 and site.job("reference").array > 1
    (tmp_path / "filled").mkdir()
    texts = list(submit_stages(load_config("tiny"), str(tmp_path / "site.yaml"), tmp_path / "run", tuple(STAGES), dry_run=True))
    assert "--gpus-per-node=" in texts[1] and "mine" in texts[1]


def test_jobs_of_a_run(tmp_path: Path) -> None:
    scripts = dry_run(
        tmp_path, partition="big one", account="chem", nodes=2, tasks_per_node=4, gpus_per_node="a100:4", memory="16G",
        minutes=90, warn_seconds=60, modules=["cuda/12 4"], setup=["export A=1"], mail="me@here", mpi="pmix",
        python="/opt/my python", stages={"farm": {"minutes": 600, "gpus_per_node": 0}},
    )  # fmt: skip
    assert list(scripts) == ["reference", "featurize, train", "sample", "correct", "farm", "report"]
    train, farm, report = (scripts[name] for name in ("featurize, train", "farm", "report"))
    for line in ("--partition='big one'", "--account=chem", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=a100:4"):
        assert f"#SBATCH {line}\n" in train, line
    for line in ("--signal=USR2@60", "--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes", "--mail-user=me@here"):
        assert f"#SBATCH {line}\n" in train, line
    assert "#SBATCH --time=90\n" in train and "#SBATCH --time=600\n" in farm and "--mem=16G" in train
    assert "--gpus-per-node" not in farm and "--dependency" not in scripts["reference"]
    assert "#SBATCH --dependency=afterok:JOB_ID_OF_REFERENCE\n" in train
    assert "srun --unbuffered" in farm and "--mpi=pmix --kill-on-bad-exit=1" in farm and "--mpi=none" in train
    assert "'/opt/my python' -u -m submitit" in farm
    begun = [farm.index(part) for part in ("module load 'cuda/12 4' ||", "export A=1", "molgen_begin /", "srun --unbuffered")]
    assert begun == sorted(begun)
    assert "--nodes=1\n" in report and "--ntasks-per-node=1\n" in report


def test_arrays_are_merged_by_the_job_after_them(tmp_path: Path) -> None:
    scripts = dry_run(tmp_path, nodes=2, array=3, array_at_once=2, stages={"sample": {"array": 100, "tasks_per_node": 2}})
    assert list(scripts) == ["reference", "reference, featurize, train", "sample", "sample, correct", "farm", "report"]
    assert "--array=0-2%2\n" in scripts["reference"] and "--nodes=1\n" in scripts["reference"]
    assert "--array=0-3%2\n" in scripts["sample"]  # no more jobs than shards
    assert "--ntasks-per-node=2\n" in scripts["sample"] and "--nodes=2\n" in scripts["sample, correct"]
    run = Run(tmp_path / "run", load_config("tiny"), Workers())
    for stages, expected in {
        ("reference",): [("reference", 3, ["reference"]), ("reference-merge", 1, ["reference"])],
        ("reference", "featurize"): [("reference", 3, ["reference"]), ("featurize", 1, ["reference", "featurize"])],
    }.items():
        jobs = plan_jobs(run, SiteConfig(array=3), stages)
        assert [(job.name, job.array, list(job.stages)) for job in jobs] == expected


def test_a_container_and_its_options_reach_the_script(tmp_path: Path) -> None:
    image = tmp_path / "an image.sif"
    image.touch()
    starts = tmp_path / "starts"
    starts.mkdir()
    options = {"container_options": ["--no-home", "--sharens"], "container_binds": ["/scratch", "/opt/site:/mnt"]}
    site = write_site(tmp_path, container=str(image), **options)
    config = load_config("tiny", [f"farm.starts={starts}"])
    (script,) = submit_stages(config, site, tmp_path / "run", ("farm",), dry_run=True)
    assert f"HPC_MOLGEN_CONTAINER='{image}'\n" in script and "OPTIONS='--no-home --sharens'\n" in script
    assert f"_BINDS=/scratch,/opt/site:/mnt,{starts}\n" in script  # what the configuration names is seen too
    assert '"${molgen_prefix[@]}" python3 -u -m submitit' in script  # the Python of the image
    without = dry_run(tmp_path, "farm")["farm"]
    assert (
        "unset ${!HPC_MOLGEN_CONTAINER*}" in without
        and "HPC_MOLGEN_CONTAINER=" not in without
        and f"{sys.executable} -u -m submitit" in without
    )


def test_a_submission_from_inside_a_job_hands_nothing_of_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpc_molgen.launch.submit import _outside_of_jobs

    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_CONF", "/here")
    with _outside_of_jobs():
        assert "SLURM_ARRAY_TASK_ID" not in os.environ and os.environ["SLURM_CONF"] == "/here"
    assert os.environ["SLURM_ARRAY_TASK_ID"] == "3"


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ({"partion": "main"}, ["did you mean 'partition'?", "tasks_per_node"]),
        ({"stages": {"fram": {}}}, ["fram", "'farm'"]),
        ({"stages": {"farm": {"minute": 3}}}, ["stages.farm: minute: unknown key (did you mean 'minutes'?)"]),
        ({"stages": {"train": {"array": 4}}}, ["only reference, sample, farm can be arrays"]),
        ({"gpus_per_node": 2, "tasks_per_node": 4}, ["4 ranks on 2 GPU(s)", "tasks_per_node"]),
        ({"gpus_per_node": "a100"}, ["type:number as in a100:4"]),
        ({"minutes": 2, "warn_seconds": 120}, ["warn_seconds 120", "2 minute(s)"]),
        ({"container": "/absent.sif"}, ["there is no image /absent.sif"]),
        ({"container_options": ["--bind /a"]}, ["without spaces"]),
        ({"container_binds": ["scratch"]}, ["absolute paths"]),
        ({"account": "FILL-IN"}, ["still to be filled in for your site: account"]),
    ],
)
def test_impossible_requests_are_refused(command: Command, tmp_path: Path, site: dict[str, object], said: list[str]) -> None:
    with pytest.raises(InputError) as error:
        load_site(write_site(tmp_path, **site))
    assert all(part in str(error.value) for part in said), error.value


def test_file_systems_of_one_machine_are_known(tmp_path: Path) -> None:
    assert _local_file_system(Path("/dev/shm")) == "tmpfs"
    assert _local_file_system(Path("/proc")) == ""
