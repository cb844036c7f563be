"""The images, built and run: by root and by an ordinary user, under MPI, and under a Slurm cluster of two nodes.

One build of each image serves all tests. Both are of the commit that is checked out, with its changes. While you work on what
does not go into images, HPC_MOLGEN_IMAGES=FOLDER takes those that `containers/build.sh` has left there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, two_nodes
from jobs import SMALL, logs, script_env, small_config, submit, undone, write_site
from registry import registry

from hpc_molgen.config import SystemConfig
from hpc_molgen.containers import ENGINES, engine, engine_environment
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.files import read_json
from hpc_molgen.run import STAGES
from hpc_molgen.systems.registry import load_system

Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
USER = 20001
MEGABYTES = {"farm": 450, "train": 1200}


def missing() -> str:
    """Return why images cannot be built here, or an empty string."""
    if not any(map(shutil.which, ENGINES)):
        return "no engine: apptainer is not installed (make packages, or containers/get_apptainer.py)"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    tools = ("debootstrap", "mksquashfs", "newuidmap", "squashfuse")
    absent = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if absent:
        return f"images cannot be built: {', '.join(absent)} missing"
    return "" if os.geteuid() == 0 else "these tests play root, an ordinary user and a cluster: they need root"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first one that asks for an image builds it
    pytest.mark.skipif(bool(missing()), reason=f"IMAGES ARE NOT TESTED: {missing()}"),
]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="hpc-molgen-images-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def build(folder: Path, kind: str) -> Path:
    """Build an image as a user does, the other one with it; return its path."""
    if "HPC_MOLGEN_IMAGES" in os.environ:
        return Path(os.environ["HPC_MOLGEN_IMAGES"]) / f"{kind}.sif"
    image = folder / f"{kind}.sif"
    if not image.exists():
        ended = call_build(folder)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return image


def call_build(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run build.sh in a folder."""
    command = [str(ROOT / "containers" / "build.sh"), *arguments]
    env = os.environ | {"PYTHON": sys.executable} | variables
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=800)


@pytest.fixture(scope="session")
def farm(folder: Path) -> Path:
    """The image `farm`."""
    return build(folder, "farm")


@pytest.fixture(scope="session")
def train(folder: Path) -> Path:
    """The image `train`."""
    return build(folder, "train")


def call(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in the environment that root's containers want."""
    settings = {"env": engine_environment(), "capture_output": True, "text": True, "timeout": 240}
    return subprocess.run([str(word) for word in command], check=False, **(settings | options))


def locked(image: Path, word: str) -> list[str]:
    """Return the lines of an image's lock file that begin with a word."""
    lines = image.with_name(f"{image.name}.lock").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith(f"{word} ")]


def test_builds_say_what_they_are_made_of(farm: Path, train: Path) -> None:
    pins = {line.lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for image in (farm, train):
        (told,) = locked(image, "sha256")
        assert (
            call("sha256sum", image).stdout.split()[0] == told == image.with_name(f"{image.name}.sha256").read_text().split()[0]
        )
        assert image.stat().st_size <= 1e6 * MEGABYTES[image.stem]
        python = dict(line.split() for line in locked(image, "python"))
        assert {"torch", "OpenMM", "mpi4py", "mpich", "h5py", "mdtraj", "submitit"} <= set(python)
        loose = [name for name, version in python.items() if f"{name.lower().replace('_', '-')}=={version}" not in pins]
        assert set(loose) <= {"hpc-molgen", "torch"} and python["torch"].partition("+")[0] == "2.13.0"
        commit = call("git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12").stdout.strip()
        assert locked(image, "commit") == [commit]
        labels = call(engine(), "inspect", "--labels", image).stdout
        assert f"org.opencontainers.image.revision: {commit}" in labels and "image.version: 0." in labels
        assert "hpc-molgen container check" in call(engine(), "run-help", image).stdout
        inside = json.loads(call(engine(), "exec", image, "cat", "/usr/share/hpc-molgen/image.json").stdout)
        assert locked(image, "build") == [inside["build"]]
    # two images of one commit: the same wheels, the same packages of Python, the same base
    assert locked(farm, "wheel") == locked(train, "wheel") and locked(farm, "python") == locked(train, "python")
    assert set(locked(farm, "debian")) < set(locked(train, "debian")) and locked(farm, "base") == locked(train, "base")


def test_check_finds_both_images_in_order(farm: Path, train: Path, command: Command) -> None:
    for image, compiler in ((farm, "-   compiler"), (train, "ok  compiler     /usr/bin/c++")):
        ended = command("container", "check", str(image))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert compiler in ended.stdout and f"kind         {image.stem} cpu" in ended.stdout
        assert re.search(r"ok  mpiexec .*2 ranks on 1 host\(s\) exchanged 8 MiB each", ended.stdout)
        assert locked(image, "sha256")[0] in ended.stdout and not re.search(r"^NO", ended.stdout, re.MULTILINE)
    ended = command("container", "check", "/absent.sif")
    assert ended.returncode == 2 and "there is no image /absent.sif" in ended.stderr


def test_a_compiled_model_trains_in_the_image_for_training(train: Path, tmp_path: Path) -> None:
    settings = [word for setting in (*SMALL, "train.compile=true", "train.n_steps=2") for word in ("--set", setting)]
    ended = call(engine(), "run", train, "run", "tiny", "--out", tmp_path / "run", *settings, "--to", "train", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert read_json(tmp_path / "run/train/done.json")["provenance"]["container"]["kind"] == "train"


# In a mount namespace of our own: a user with a home, and a /dev/fuse that he may open, as every desktop and cluster has it
_AS_USER = """
set -eu
folder=$1 user=$2; shift 2
mkdir -p "$folder/home" && chown "$user:$user" "$folder/home"
for file in passwd group; do cp "/etc/$file" "$folder/$file"; done
echo "someone:x:$user:$user::$folder/home:/bin/sh" >>"$folder/passwd"
echo "someone:x:$user:" >>"$folder/group"
for file in passwd group; do mount --bind "$folder/$file" "/etc/$file"; done
if [ -e /dev/fuse ]; then
  [ -e "$folder/fuse" ] || mknod "$folder/fuse" c 10 229
  chmod 666 "$folder/fuse" && mount --bind "$folder/fuse" /dev/fuse
fi
cd "$folder/home"
exec setpriv --reuid="$user" --regid="$user" --clear-groups env -i HOME="$folder/home" USER=someone PATH="$PATH" "$@"
"""


def as_user(folder: Path, *command: str | Path, network: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command as an ordinary user whose home is `folder`/home."""
    apart = ["unshare", "--mount", *([] if network else ["--net"])]
    path = f"{users_engine(folder).parent}:{users_launcher(folder)}:/usr/local/bin:/usr/bin:/bin"
    return call(
        *apart, "sh", "-c", _AS_USER, "sh", folder, str(USER), *command, env={"PATH": f"{path}:/usr/sbin:/sbin"}, timeout=600
    )


def users_engine(folder: Path) -> Path:
    """Return the engine, or a copy where others may not enter its folder."""
    program = Path(engine()).resolve()
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in program.parents):
        return program
    copy = folder / "engine"
    if not copy.exists():
        shutil.copytree(program.parents[2], copy, symlinks=True)
    return copy / program.relative_to(program.parents[2])


def users_launcher(folder: Path) -> Path:
    """Return a folder with MPICH's launcher."""
    copy = folder / "launcher"
    if not copy.exists():
        copy.mkdir()
        for name in ("mpiexec", "hydra_pmi_proxy"):
            shutil.copy2(Path(sys.executable).parent / name, copy / name)
    return copy


def test_an_ordinary_user_runs_everything_without_a_network(farm: Path, folder: Path) -> None:
    seen = as_user(
        folder,
        "apptainer",
        "exec",
        farm,
        "sh",
        "-c",
        "id -u; sed -n 3,9p /proc/net/dev; touch /opt/hpc-molgen/x",
        network=False,
    )
    assert (
        seen.stdout.split()[:2] == [str(USER), "lo:"]
        and seen.stdout.count("\n") == 2
        and "Read-only file system" in seen.stderr
    )

    ended = as_user(folder, "apptainer", "run", farm, "run", "tiny", "--out", "a run", network=False)
    assert ended.returncode in (0, 3), ended.stdout + ended.stderr  # 3: so small a run is rarely certified
    out = folder / "home" / "a run"
    (told,) = locked(farm, "sha256")
    for stage in STAGES:
        found = read_json(out / stage / "done.json")["provenance"]
        assert found["container"]["sha256"] == told and found["container"]["image"] == str(farm)
        assert [found["git_commit"]] == locked(farm, "commit")
    for name in ("report.md", "report.html"):
        assert f"in the image farm.sif (SHA-256 {told}" in (out / "report" / name).read_text()
    assert {path.stat().st_uid for path in out.rglob("*")} == {USER}


def test_ranks_of_an_ordinary_user_exchange_large_messages(farm: Path, folder: Path) -> None:
    ranks = ["python3", "-m", "hpc_molgen.launch.inside", "ranks", "2"]
    ended = as_user(folder, "mpiexec", "-n", "2", "apptainer", "exec", farm, *ranks)
    assert ended.stdout == "2 ranks on 1 host(s) exchanged 8 MiB each\n", ended.stderr


def test_ranks_in_containers_make_the_walkers_of_one_process_outside(farm: Path, command: Command, tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    run = ["run", "tiny", *settings, "--only", "reference", "--out"]
    mpiexec = Path(sys.executable).with_name("mpiexec")
    ended = call(mpiexec, "-n", "2", engine(), "run", farm, *run, tmp_path / "inside", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert command(*run, str(tmp_path / "outside")).returncode == 0
    system = load_system(SystemConfig())
    walkers = sorted((tmp_path / "inside/reference").glob("walker-*.h5"))
    assert len(walkers) == 4
    for walker in walkers:
        outside = read_ensemble(tmp_path / "outside/reference" / walker.name, system)
        np.testing.assert_array_equal(read_ensemble(walker, system).positions_nm, outside.positions_nm)
    lines = [line for line in ended.stderr.splitlines() if "reference" in line]
    assert len(lines) == len(set(lines)), "two worlds of size 1 log everything twice"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cleanenv"], "a launcher (hydra_pmi_proxy) started 2 processes on this machine"),
        (["--containall", "--sharens"], "--cleanenv, --containall or --pid keep"),
    ],
)
def test_ranks_that_are_alone_say_so(farm: Path, tmp_path: Path, options: list[str], said: str) -> None:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    run = ["hpc-molgen", "run", "tiny", "--only", "reference", "--out", str(tmp_path / "run")]
    ended = call(mpiexec, "-n", "2", engine(), "exec", *options, "--bind", tmp_path, farm, *run)
    assert ended.returncode != 0 and said in ended.stderr


def test_a_rank_that_the_scripts_told_of_the_others_is_refused_alone(farm: Path, tmp_path: Path) -> None:
    run = ["hpc-molgen", "run", "tiny", "--out", str(tmp_path / "run")]
    env = {name: value for name, value in engine_environment().items() if not name.startswith(("PMI", "SLURM", "OMPI"))}
    ended = call(engine(), "exec", "--env", "HPC_MOLGEN_RANKS=3", farm, *run, env=env, cwd=tmp_path)
    assert ended.returncode == 2 and "the launcher started 3 ranks, but MPI sees 1: MPICH of this image" in ended.stderr


@pytest.mark.skipif("HPC_MOLGEN_REBUILD" not in os.environ, reason="a third build takes minutes: HPC_MOLGEN_REBUILD=1 has it")
def test_a_second_build_of_a_commit_says_what_differs(farm: Path, folder: Path, tmp_path: Path) -> None:
    """It has the same packages, so that the one that the first build's lock file is made to name beside them is all."""
    shutil.copy(f"{farm}.lock", tmp_path / "farm.sif.lock")
    first = (tmp_path / "farm.sif.lock").read_text().splitlines()
    with open(tmp_path / "farm.sif.lock", "a") as lock:
        lock.write("python absent 1.0\n")
    ended = call_build(tmp_path, "farm", "--no-test")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = [line for line in ended.stdout.splitlines() if line.startswith(("<", ">"))]
    assert "the packages differ from those of the earlier build of this commit" in ended.stdout and told == [
        "< python absent 1.0"
    ]
    own = ("sha256", "build")
    second = (tmp_path / "farm.sif.lock").read_text().splitlines()
    assert [line for line in first if not line.startswith(own)] == [line for line in second if not line.startswith(own)]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with four CPUs each."""
    yield from two_nodes()


def test_submitted_stages_run_in_the_image_on_two_nodes(
    farm: Path, train: Path, cluster: Cluster, command: Command, tmp_path: Path
) -> None:
    library, out = tmp_path / "site library", tmp_path / "run"
    library.mkdir()
    cluster.env |= {name: value for name, value in engine_environment().items() if name == "APPTAINER_DROP_CAPS"}
    site = write_site(
        tmp_path, nodes=2, tasks_per_node=1, container=str(farm), container_binds=[f"{library}:/mnt"],
        stages={"train": {"container": str(train)}},
        setup=[f"export TMPDIR={cluster.unshared}/scratch; mkdir -p $TMPDIR"],  # a disk that the first node has alone
    )  # fmt: skip
    jobs = submit(command, cluster, small_config(tmp_path), site, out, "--to", "farm")
    assert cluster.wait(jobs["farm"], 400) == "COMPLETED", logs(out)
    assert undone(out) == ["report"]
    for stage in ("reference", "featurize", "train", "sample", "correct", "farm"):
        record = read_json(out / stage / "done.json")
        image = train if stage in ("featurize", "train") else farm
        assert [record["provenance"]["container"]["sha256"]] == locked(image, "sha256"), stage
    assert read_json(out / "train" / "done.json")["details"]["ranks"] == 2
    lines = (out / "farm" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 4 and len(read_json(out / "farm" / "live.json")["busy"]) == 2  # the rank of each node took part
    script = sorted(out.glob("submitit/*/*.sh"))[-1].read_text()
    assert f"{library}:/mnt" in script


def test_the_scripts_run_in_the_image(farm: Path, cluster: Cluster, tmp_path: Path) -> None:
    script = ROOT / "slurm" / "reference.sbatch"
    variables = {
        "HPC_MOLGEN_CONTAINER": str(farm),
        **{k: v for k, v in engine_environment().items() if k == "APPTAINER_DROP_CAPS"},
    }
    settings = [word for setting in SMALL for word in ("--set", setting)]
    outputs = {name: tmp_path / name for name in ("right", "wrong")}
    jobs = {}
    for name, out in outputs.items():
        # Slurm's ranks cannot speak Open MPI's protocol with MPICH, and an environment that is kept out leaves them alone
        env = script_env(cluster, **variables, **({"HPC_MOLGEN_CONTAINER_OPTIONS": "--cleanenv"} if name == "wrong" else {}))
        line = [
            "sbatch",
            "--parsable",
            "--nodes=2",
            "--ntasks-per-node=1",
            f"--output={tmp_path}/{name}.log",
            script,
            "tiny",
            out,
        ]
        jobs[name] = call(*line, *settings, env=env).stdout.strip()
    assert cluster.wait(jobs["right"]) == "COMPLETED", (tmp_path / "right.log").read_text()
    assert [read_json(outputs["right"] / "reference/done.json")["provenance"]["container"]["sha256"]] == locked(farm, "sha256")
    assert cluster.wait(jobs["wrong"]) == "FAILED"
    log = (tmp_path / "wrong.log").read_text()
    assert "the launcher started 2 ranks, but MPI sees 1: MPICH" in log and "--cleanenv" in log, log


def test_the_benchmark_measures_inside_and_outside(farm: Path, command: Command, tmp_path: Path) -> None:
    env = engine_environment() | {"HPC_MOLGEN_CONTAINER": str(farm)}
    ended = command("benchmark", "container", "--size", "smoke", "--out", str(tmp_path), env=env)
    assert ended.returncode == 0, ended.stderr
    record = read_json(tmp_path / "container-smoke.json")
    assert len(record["results"]) == 2 and set(record["results"][0]) == {
        f"{name} {place}" for name in ("kernel", "reference") for place in ("inside", "outside")
    }
    assert all(result["per_cpu_s"]["mean"] > 100 for pair in record["results"] for result in pair.values())
    assert locked(farm, "sha256")[0] in (tmp_path / "container-smoke.md").read_text()
    ended = command(
        "benchmark", "container", "--size", "smoke", env={k: v for k, v in os.environ.items() if k != "HPC_MOLGEN_CONTAINER"}
    )
    assert ended.returncode == 2 and "set HPC_MOLGEN_CONTAINER" in ended.stderr


def test_a_base_comes_from_a_registry(farm: Path, tmp_path: Path) -> None:
    """A registry on this machine has Debian, as the root of an image, and `build.sh` makes its base of that."""
    layer = tmp_path / "layer.tar.gz"
    folders = ["bin", "sbin", "lib", "lib64", "usr", "etc", "var", "tmp", "mnt"]
    packed = call(
        engine(), "exec", farm, "tar", "-C", "/", "--exclude=tmp/*", "--exclude=mnt/*", "-czf", layer, *folders, cwd=tmp_path
    )
    assert packed.returncode == 0, packed.stderr
    with registry(layer) as address:
        variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "APPTAINER_NOHTTPS": "1"}
        ended = call_build(tmp_path, "base", "--base", "docker", "--from", f"{address}/debian:bookworm-slim", **variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (base,) = (tmp_path / "cache" / "hpc-molgen").glob("base-docker-*.sif")
    assert f"base: {base}" in ended.stdout
    assert call(engine(), "exec", base, "python3", "-c", "import venv, sys; print(sys.version_info[:2])").stdout == "(3, 11)\n"
