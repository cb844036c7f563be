"""Suite `scaling`: training on 1 to hundreds of ranks, measured on as many as it is started on, modelled for the others.

Under torch's ranks (slurm/scaling.sh, torchrun, or alone) it measures and writes scaling-<ranks>.json; with `plan` it reads
all such files of a folder and prints what to expect on a cluster beside what was measured. A size says how long each figure is
measured, and nothing of the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc_molgen.efficiency.suites import scaling_inputs as given
from hpc_molgen.efficiency.suites import scaling_tables as tables
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.scaling_check import check_two_processes
from hpc_molgen.efficiency.suites.scaling_inputs import Inputs, Points
from hpc_molgen.efficiency.suites.scaling_measure import QUICK, Effort, measure
from hpc_molgen.efficiency.suites.scaling_model import Forecast, forecast, rank_numbers
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.training.distributed import ProcessGroup, process_group
from hpc_molgen.workers import available_cores, launched_size, one_thread

SIZES = {
    "laptop": Effort(),
    "smoke": Effort(fractions=(16, 4, 2, 1), n_rounds=2, measure_s=0.02, reduce_bytes=(4, 2**16, 2**20), reduce_repeats=3),
    "cluster": Effort(n_rounds=15, measure_s=5.0, reduce_bytes=(*Effort.reduce_bytes, 2**26), reduce_repeats=100),
}


def scaling(
    size: str, out: Path, seed: int, *, plan: bool = False, assignments: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """Measure on these ranks, or plan; return this part of the record, on ranks other than the first None."""
    if size not in SIZES:
        raise InputError(f"the suite 'scaling' has no size '{size}'; it has: {', '.join(SIZES)}")
    inputs = given.parse_inputs(assignments)
    group = process_group("cpu" if plan else inputs.device)
    if group.size == 1 and launched_size() > 1:
        raise EnvironmentProblem(
            f"a launcher started {launched_size()} processes that are no ranks of torch: start them by slurm/scaling.sh, "
            "slurm/benchmark.sbatch or torchrun"
        )
    with one_thread():
        record = plan_record(inputs, out, seed) if plan else measured_record(inputs, group, size, seed)
    settings = "".join(f" --set {assignment}" for assignment in assignments or ())
    how = "--plan" if plan else f"--size {size}"
    record["command"] = f"hpc-molgen benchmark scaling {how}{settings} --seed {seed} --out DIR"
    if group.size > 1:
        record["command"] += f"    (as {group.size} ranks)"
    return record if group.is_root else None


def measured_record(inputs: Inputs, group: ProcessGroup, size: str, seed: int) -> dict[str, Any]:
    """Record of this number of ranks; alone on CPUs, also the check of the model."""
    effort, costs, check = SIZES[size], Costs(), None
    with costs.stage(f"steps and all-reduces on {group.size} rank(s) (CPU seconds of the first)"):
        points = measure(inputs, group, effort, seed)
    notes = ["Steps without exchange run on all ranks at once; of steps with exchange the slowest rank counts."]
    plain = (inputs.precision, inputs.compile) == ("float32", False)
    if group.size == 1 and group.device.type == "cpu" and plain and available_cores() > 1:
        with costs.stage("two processes against the model"):
            check = check_two_processes(inputs.workload, effort, seed)
    else:
        notes.append("The model was not checked with two processes: that takes one rank, two cores, float32 and no compiler.")
    if not points.strong_s:
        notes.append(f"There were more ranks than items in the batch of {points.batch_size}: no strong scaling.")
    return {
        "file": points.file,
        "question": tables.QUESTION,
        "answer": [*tables.measured_answer(points), *([tables.check_answer(check)] if check else [])],
        "targets": [],
        "tables": [*tables.measured_tables(points), *([tables.check_table(check)] if check else [])],
        "costs": costs.stages,
        "notes": notes,
        "results": {"points": points.model_dump(mode="json"), "check": check},
        "config": {"effort": asdict(effort), "inputs": inputs.model_dump(mode="json")},
    }


def plan_record(inputs: Inputs, out: Path, seed: int) -> dict[str, Any]:
    """Record of the plan: strong and weak scaling up to `max_ranks`."""
    costs, notes = Costs(), list(tables.MODEL_NOTES)
    with costs.stage("plan"):
        points = _of_the_same_kind(given.read_points(out), inputs, notes)
        inputs = _with_measured_sizes(inputs, points)
        workload = inputs.workload
        base, source = _base(points, inputs, seed, notes)
        numbers = {**given.compute_inputs(inputs, base, source), **given.network_inputs(inputs, points)}
        compute, network = given.make_compute(numbers), given.make_network(numbers)
        exchange = given.make_exchange(workload, inputs.bucket_mib, numbers["backward_share"].value)
        ranks = rank_numbers(inputs.max_ranks)
        strong = [forecast(workload.batch_size, n, compute, exchange, network) for n in ranks if n <= workload.batch_size]
        weak = [forecast(n * inputs.weak_items, n, compute, exchange, network) for n in ranks]
    assumed = [name for name, number in numbers.items() if "assumed" in number.source]
    if assumed:
        notes.insert(0, f"**Assumed, not measured here**: {', '.join(assumed)}. Give your cluster's by --set, or measure them.")
    exchanged = f"{exchange.n_bytes / 1e6:.3g} MB of gradients in {sum(map(len, exchange.updates))} all-reduce(s) a step"
    captions = {
        "strong": f"Strong scaling: {workload.words}, {workload.batch_size} items in all, {exchanged}",
        "weak": f"Weak scaling: {workload.words}, {inputs.weak_items} items each, {exchanged}",
    }
    fixed = [run for run in points if run.batch_size == workload.batch_size]
    growing = [run for run in points if run.items_per_rank == inputs.weak_items]
    for words, used in (("strong scaling: another batch_size", fixed), ("weak scaling: another items_per_rank", growing)):
        if left_out := [f"{run.file}.json" for run in points if run not in used]:
            notes.append(f"Not shown beside {words}: {', '.join(left_out)}.")
    return {
        "file": "scaling-plan",
        "size": "plan",
        "question": tables.QUESTION,
        "answer": tables.plan_answer(strong, weak, compute, gpu=base is None or base.device == "cuda"),
        "targets": [],
        "tables": [
            tables.input_table(numbers),
            *([tables.fit_table(base)] if base else []),
            tables.scaling_table("strong", captions["strong"], strong, strong[0], fixed),
            tables.scaling_table("weak", captions["weak"], weak, weak[0], growing),
        ],
        "costs": costs.stages,
        "notes": notes,
        "results": {
            "inputs": {name: asdict(number) for name, number in numbers.items()},
            "model": tables.model_parts(compute, exchange),
            "strong": [_row(row, strong[0]) for row in strong],
            "weak": [_row(row, weak[0]) for row in weak],
            "measured": [run.model_dump(mode="json") for run in points],
        },
        "config": {"inputs": inputs.model_dump(mode="json")},
    }


def _row(row: Forecast, one: Forecast) -> dict[str, Any]:
    figures = {"step_s": row.step_s, "samples_per_s": row.samples_per_s, "efficiency": row.efficiency(one)}
    return {**asdict(row), **figures}


def _of_the_same_kind(points: Sequence[Points], inputs: Inputs, notes: list[str]) -> list[Points]:
    """Return the runs that trained what is planned, on the device of the run with fewest ranks; name the others."""
    wanted = (inputs.surrogate, inputs.precision, inputs.compile)
    same = [run for run in points if (run.surrogate, run.precision, run.compile) == wanted]
    same = [run for run in same if run.device_name == same[0].device_name]
    left_out = [f"{run.file}.json" for run in points if run not in same]
    if left_out:
        notes.append(f"Not used, measured with other settings or devices: {', '.join(left_out)}.")
    return same


def _with_measured_sizes(inputs: Inputs, points: Sequence[Points]) -> Inputs:
    """Plan, unless told otherwise, for the batch sizes of the largest run."""
    sizes = ("batch_size", "items_per_rank") if points else ()
    return inputs.model_copy(update={name: getattr(points[-1], name) for name in sizes if getattr(inputs, name) is None})


def _base(points: Sequence[Points], inputs: Inputs, seed: int, notes: list[str]) -> tuple[Points | None, str]:
    """Return the run that gives the time of a step, unless that is given, and words for where it comes from.

    It is the run that filled one node: there ranks share memory, power and cooling as on a cluster.
    """
    if inputs.step_fixed_ms is not None:
        return None, "given"
    if points:
        full = [run for run in points if run.nodes == 1] or list(points[:1])
        return full[-1], f"measured: {full[-1].file}.json"
    measured = measure(inputs, process_group(inputs.device), QUICK, seed)
    notes.append(
        f"No scaling-<ranks>.json lay in the folder, so the step was timed just now, for a second or two, on this machine's "
        f"{measured.device} ({measured.device_name}). For other devices run `hpc-molgen benchmark scaling` there, or --set "
        "step_fixed_ms and step_item_us."
    )
    return measured, "measured just now"
