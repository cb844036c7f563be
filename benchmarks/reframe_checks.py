"""ReFrame checks: the benchmark suites on a site's cluster, each held against the floors that this repository keeps.

ReFrame (`pip install 'hpc-molgen[reframe]'`) and the nodes use the same environment:

    reframe -C SITE.py -c benchmarks/reframe_checks.py -r                       # every suite in the size cluster
    reframe -c benchmarks/reframe_checks.py -r -n energies -S size=smoke        # one, on this machine
    reframe ... -S floors=MY_FLOORS.yaml -J account=A -J gpus-per-node=4        # other floors; options of the scheduler

A suite is one task with all the CPUs of its node. `scaling` on more ranks than one is started by slurm/scaling.sh.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.exceptions import ReframeError, SanityError

from hpc_molgen.efficiency.suites import SIZES, SUITES
from hpc_molgen.efficiency.suites.compare import repeated
from hpc_molgen.efficiency.suites.guard import read_floors

HERE = Path(__file__).resolve().parent
RATES = re.compile(r"(per_(cpu_|wall_)?s|ns_per_(core_)?day(_core|_wall)?)$")


@rfm.simple_test
class BenchmarkSuite(rfm.RunOnlyRegressionTest):
    """One suite: it ends, its record follows the schema, its answer is printed, and no ratio is below its floor."""

    suite = parameter(SUITES)  # noqa: F821 (ReFrame's own words in the body of a check)
    size = variable(str, value="cluster")  # noqa: F821
    floors = variable(str, value=str(HERE / "floors.yaml"))  # noqa: F821
    valid_systems = ["*"]  # noqa: RUF012
    valid_prog_environs = ["*"]  # noqa: RUF012
    sourcesdir = None
    executable = "hpc-molgen"
    time_limit = "1d"
    maintainers = ["hpc_molgen"]  # noqa: RUF012
    keep_files = ["results"]  # noqa: RUF012

    @run_after("init")  # noqa: F821
    def set_command(self):
        """Say what runs, and leave out what this machine cannot run."""
        self.descr = f"hpc-molgen benchmark {self.suite} --size {self.size}"
        self.tags = {self.suite, self.size}
        if self.size not in SIZES:
            raise ReframeError(f"size={self.size}: the sizes are {', '.join(SIZES)}")
        no_image = self.suite == "container" and not os.environ.get("HPC_MOLGEN_CONTAINER")
        self.skip_if(no_image, "set HPC_MOLGEN_CONTAINER to the path of an image")
        if self.size == "smoke":
            self.time_limit = "20m"
        self.executable_opts = ["benchmark", self.suite, "--size", self.size, "--out", "results"]
        self.postrun_cmds = ["hpc-molgen benchmark schema results/*.json", "cat results/*.md"]

    @run_before("run")  # noqa: F821
    def take_a_node(self):
        """Ask for all CPUs of a node where the site's configuration tells their number."""
        self.num_tasks = self.num_tasks_per_node = 1
        if self.current_partition.scheduler.registered_name != "local":
            self.exclusive_access = True
            self.num_cpus_per_task = self.current_partition.processor.num_cpus or None

    def record(self):
        """The record that the suite wrote."""
        (path,) = (Path(self.stagedir) / "results").glob("*.json")
        return json.loads(path.read_text())

    @sanity_function  # noqa: F821
    def has_answered(self):
        """The record exists and follows its schema, and its answer was printed."""
        followed = sn.assert_found(r"results/\S+\.json: follows the schema", self.stdout)
        said = sn.all(sn.assert_found(re.escape(line), self.stdout) for line in self.answer())
        return sn.all([followed, sn.assert_true(self.answer(), "the record has no answer"), said])

    @deferrable  # noqa: F821
    def answer(self):
        """The sentences of the record."""
        return self.record()["answer"]

    @run_before("performance")  # noqa: F821
    def set_figures(self):
        """Ratios with their floors, and rates without any: medians of the repeats in the record."""
        found = {name: float(np.median(values)) for name, values in repeated(self.record()["results"])}
        floors = read_floors(Path(self.floors)).get(self.suite, {})
        judged = {name: floor for name, floor in floors.items() if name in found}  # a processor may lack instructions
        if floors and not judged:
            raise SanityError(f"{self.floors} has no floor for anything that the suite '{self.suite}' measured here")
        rates = [name for name in found if RATES.search(name) and name not in judged]
        units = {**dict.fromkeys(judged, "times"), **{name: "ns/day" if "ns_per" in name else "1/s" for name in rates}}
        self.perf_variables = {name: sn.make_performance_function(sn.defer(found[name]), unit) for name, unit in units.items()}
        self.reference = {"*": {name: (floor, 0, None, "times") for name, floor in judged.items()}}
