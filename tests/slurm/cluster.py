"""A real Slurm cluster on this machine: munged, slurmctld and one slurmd per node, all in the foreground as our children.

Nothing outside one temporary folder is written, every port is free at the time of asking, and job ids start at random, so
that two clusters live side by side. There is no accounting, hence no database: jobs are followed with `squeue`, which
remembers them for minutes. Jobs of partition `high` preempt those of `main`; the last node has a folder of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOOLS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

# NodeName is an address in 127.0.0.0/8: it resolves everywhere without a line in /etc/hosts
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
{warning}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobSubmitPlugins=lua
ReturnToService=2
EnforcePartLimits=ALL
KillWait=3
FirstJobId={first_job}
SlurmctldTimeout=30
SlurmdTimeout=60
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=60 DefaultTime=10 State=UP PriorityTier=10
"""

# what slurmctld answers when a limit of the books is reached; real limits need accounting, that is, a database
_FULL_ACCOUNT = """\
function slurm_job_submit(job, partitions, user)
  if job.account == "full" then return slurm.ESLURM_ACCOUNTING_POLICY end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
"""


def why_not() -> str:
    """Return why a cluster cannot be brought up here, or an empty string."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_search_path()) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} missing): apt-get install --no-install-recommends slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a Slurm cluster of several nodes on one machine needs root"


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def free_ports(n: int) -> list[int]:
    """Return `n` different ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def wait_for(ready: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Poll until `ready`; a generous deadline, because a busy machine stalls."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {timeout_s:.0f} s: {what}")
        time.sleep(0.1)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed pytest leaves no daemon


class Cluster:
    """`n_nodes` nodes of `n_cpus` CPUs each, on this machine; use it as a context manager.

    Parameters
    ----------
    warns : bool
        Preempted jobs get the signal of their --signal option first; otherwise SIGTERM comes at once.

    Attributes
    ----------
    env : dict of str
        Environment in which Slurm's commands find this cluster.
    unshared : Path
        A folder that the last node sees empty, as if it lay on a disk of the other nodes.
    """

    def __init__(self, n_nodes: int = 2, n_cpus: int = 2, *, warns: bool = False) -> None:
        self.n_nodes, self.n_cpus, self.warns = n_nodes, n_cpus, warns
        self.nodes = [f"127.0.0.{index + 2}" for index in range(n_nodes)]
        self.folder = Path(tempfile.mkdtemp(prefix="hpc-molgen-slurm-"))
        self.unshared = self.folder / "unshared"
        self.env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _search_path()}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start("munged", "munged", "-F", *self._munge_options())
            munge = ["munge", "-n", "-S", str(self.folder / "run/munge.socket")]
            wait_for(lambda: self._call(munge).returncode == 0, self.logs("munged"))
            self._start("slurmctld", "slurmctld", "-D", "-c")
            hide = f"mount -t tmpfs none '{self.unshared}' && exec "
            for node in self.nodes:
                line = "slurmd", "-D", "-N", node
                alone = ("unshare", "--mount", "sh", "-c", f'{hide} "$@"', "sh", *line)
                self._start(f"slurmd-{node}", *(alone if node == self.nodes[-1] else line))
            wait_for(self._all_idle, "nodes are not idle")
        except BaseException as error:
            error.add_note("\n".join(self.logs(name) for name in self._daemons))
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self) -> None:
        self.folder.chmod(0o755)  # munged wants every folder above its socket to be open
        for name in (
            "run",
            "state",
            "log",
            "unshared",
            *(f"{kind}/{node}" for kind in ("spool", "tmp") for node in self.nodes),
        ):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "key").mkdir(mode=0o700)
        key = self.folder / "key/munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        controller_port, *ports = free_ports(1 + self.n_nodes)
        hardware = f"CPUs={self.n_cpus} RealMemory=4000 State=UNKNOWN"
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} Feature={feature} {hardware}"
            for node, port, feature in zip(self.nodes, ports, ["shared"] * (self.n_nodes - 1) + ["alone"], strict=True)
        )
        text = _CONFIGURATION.format(
            folder=self.folder,
            controller_port=controller_port,
            nodes=nodes,
            first_job=random.randint(1000, 30_000_000),
            warning="SlurmctldParameters=preempt_send_user_signal" if self.warns else "",
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "job_submit.lua").write_text(_FULL_ACCOUNT)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # slurmd starts where no cgroup is mounted

    def _all_idle(self) -> bool:
        ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
        if ended:
            raise RuntimeError(f"ended at once: {', '.join(ended)}")
        return self._call(["sinfo", "-h", "-N", "-p", "main", "-o", "%T"]).stdout.split().count("idle") == self.n_nodes

    def _munge_options(self) -> list[str]:
        files = {"key-file": "key/munge.key", "socket": "run/munge.socket", "pid-file": "run/munged.pid"}
        files |= {"log-file": "log/munged.log", "seed-file": "run/munged.seed"}
        return [f"--{option}={self.folder / name}" for option, name in files.items()]

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "wb") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is pytest's; the daemons go in stop()
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (pytest has no threads here)
            )

    def _call(self, command: list[str], timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run a client command; one that cannot reach its daemon in time counts as failed."""
        try:
            return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", "timed out")

    def logs(self, name: str) -> str:
        """Return the end of what a daemon wrote."""
        path = self.folder / "log" / f"{name}.out"
        return f"{name}: {path.read_text(errors='replace')[-2000:]}" if path.is_file() else name

    def state(self, job: str) -> str:
        """Return Slurm's state of a job; of an array all states that its jobs are in."""
        lines = self._call(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"]).stdout.split()
        return " ".join(sorted(set(lines)))

    def wait(self, job: str, timeout_s: float = 240.0) -> str:
        """Wait until a job has ended and return its state."""
        wait_for(lambda: bool(self.state(job)) and set(self.state(job).split()) <= FINAL, f"job {job}", timeout_s)
        return self.state(job)

    def restarts(self, job: str) -> int:
        """Return how often a job went back into the queue."""
        return int(self._call(["squeue", "-h", "-t", "all", "-j", job, "-O", "RestartCnt"]).stdout)

    def exit_code(self, job: str) -> int:
        """Return the exit code of a job that has ended."""
        return int(self._call(["scontrol", "show", "job", job]).stdout.partition(" ExitCode=")[2].partition(":")[0])

    def control(self, *command: str) -> None:
        """Run a client command that has to succeed."""
        ended = self._call(list(command))
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stderr}")

    def stop(self) -> None:
        """End the jobs, the daemons and whatever either left behind; remove the folder."""
        if "slurmctld" in self._daemons:
            self._call(["scancel", "-Q", "--user=root"])
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not self._call(["squeue", "-h"]).stdout.strip(), "jobs that end", 15.0)
        for name in reversed(list(self._daemons)):
            if name == "munged":
                self._end_strays()
            daemon = self._daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_strays(self) -> None:
        for process in set(self.processes()) - {daemon.pid for daemon in self._daemons.values()}:
            print(f"ended a stray process {process}", file=sys.stderr)
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Return daemons, step daemons and job processes of this cluster alone: they carry the path of its configuration."""
        mark = f"SLURM_CONF={self.env['SLURM_CONF']}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (process / "environ").read_bytes().split(b"\0")
                of_job = any(variable.startswith(b"SLURMD_NODENAME=") for variable in variables)
                program = (process / "cmdline").read_bytes().split(b"\0")[0]
                if mark in variables and (of_job or b"slurm" in program or b"munged" in program):
                    found.append(int(process.name))
        return found


def two_nodes() -> Iterator[Cluster]:
    """Yield a cluster of two nodes with four CPUs each, and look what it leaves behind: the body of a fixture."""
    problem = why_not()
    if problem:
        pytest.skip(problem)
    with Cluster(n_nodes=2, n_cpus=4) as running:
        yield running
    assert not running.folder.exists()
    assert running.processes() == []
    assert running.unshared.as_posix() not in Path("/proc/self/mounts").read_text()
