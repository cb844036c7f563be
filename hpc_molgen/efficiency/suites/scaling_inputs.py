"""What the suite `scaling` is told by `--set`, what it measured before, and what it has to assume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from hpc_molgen.config import Model, assign, explain
from hpc_molgen.efficiency.suites.scaling_model import Compute, Exchange, Network, buckets, fit_line
from hpc_molgen.efficiency.suites.training_workloads import WORKLOADS, Workload, parameter_bytes
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json


class Inputs(Model):
    """Settings of `benchmark scaling`; what is None is measured or, where nothing was measured, assumed."""

    surrogate: Literal["diffusion", "gan"] = "diffusion"
    batch_size: int | None = Field(None, ge=1, description="global batch of strong scaling; None: 1024, GAN 128")
    items_per_rank: int | None = Field(None, ge=1, description="of weak scaling; None: batch_size")
    precision: Literal["float32", "bf16", "float64"] = "float32"
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_ranks: int = Field(512, ge=2, le=2**20)
    gpus_per_node: int | None = Field(None, ge=1, description="ranks that share a node")
    bandwidth_gb_s: float | None = Field(None, gt=0, description="of a node to the others, each way, 1e9 bytes a second")
    intra_bandwidth_gb_s: float | None = Field(None, gt=0, description="of a GPU to the others of its node, each way")
    latency_us: float | None = Field(None, ge=0, description="of one message between nodes")
    intra_latency_us: float | None = Field(None, ge=0, description="of one message inside a node")
    step_fixed_ms: float | None = Field(None, ge=0, description="a of the step time a + b items of another machine's device")
    step_item_us: float | None = Field(None, gt=0, description="b of it; both or neither")
    jitter: float | None = Field(None, ge=0, description="standard deviation of a step's time over its mean")
    backward_share: float | None = Field(None, ge=0, le=1, description="share of a step behind which gradients travel")
    bucket_mib: float = Field(25.0, gt=0, description="of DDP")

    @model_validator(mode="after")
    def _both_step_times(self) -> Inputs:
        if (self.step_fixed_ms is None) != (self.step_item_us is None):
            raise ValueError("step_fixed_ms and step_item_us belong together: give both, or none to measure them")
        return self

    @property
    def workload(self) -> Workload:
        """The surrogate with the global batch of strong scaling."""
        workload = WORKLOADS[self.surrogate]
        return replace(workload, batch_size=self.batch_size or workload.batch_size)

    @property
    def weak_items(self) -> int:
        """Items of each rank in weak scaling."""
        return self.items_per_rank or self.workload.batch_size


def parse_inputs(assignments: Sequence[str] | None) -> Inputs:
    """Read ``key=value`` settings.

    Raises
    ------
    InputError
        With every error; for an unknown key the right ones are listed.
    """
    values: dict[str, Any] = {}
    for assignment in assignments or ():
        assign(values, assignment)
    try:
        return Inputs.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, Inputs, "benchmark scaling --set")) from error


class Points(Model):
    """What one run of `benchmark scaling` measured on its ranks.

    Seconds of steps are means over ranks where ranks work alone (`step_s`), and of the slowest rank where they work together
    (`strong_s`, `weak_s`, one value for each round; `all_reduce_s`).
    """

    surrogate: str
    precision: str
    compile: bool
    device: str
    device_name: str
    batch_size: int
    items_per_rank: int
    ranks: int = Field(ge=1)
    nodes: int = Field(ge=1)
    items: tuple[int, ...]
    step_s: tuple[float, ...]
    jitter: float
    strong_s: tuple[float, ...]
    weak_s: tuple[float, ...]
    all_reduce_bytes: tuple[int, ...]
    all_reduce_s: tuple[float, ...]

    @property
    def file(self) -> str:
        """Name of its record, without ending."""
        return f"scaling-{self.ranks}"


def read_points(out: Path) -> list[Points]:
    """Read every record scaling-<ranks>.json in a folder, fewest ranks first.

    Raises
    ------
    InputError
        When one is no such record.
    """
    found = []
    for path in sorted(out.glob("scaling-[0-9]*.json")):
        try:
            found.append(Points.model_validate(read_json(path)["results"]["points"]))
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a record of `benchmark scaling` ({error}); move it away") from error
    return sorted(found, key=lambda points: points.ranks)


@dataclass(frozen=True)
class Input:
    """A number of the model, and where it comes from: "given", "measured: FILE", or "assumed: WHY"."""

    value: float
    unit: str
    source: str


# HDR InfiniBand carries 200 Gb/s and A100's NVLink 300 GB/s each way, of which NCCL reaches some 230 (its tuning model,
# src/graph/tuning.cc, caps it at 235); the latencies are those of that model for the ring algorithm (protocol "simple")
ASSUMED: dict[str, tuple[float, str, str]] = {
    "gpus_per_node": (4, "", "a usual node"),
    "bandwidth_gb_s": (25.0, "GB/s", "one 200 Gb/s port a node"),
    "intra_bandwidth_gb_s": (200.0, "GB/s", "NVLink of an A100, what NCCL reaches"),
    "latency_us": (10.0, "us", "NCCL's own model, network"),
    "intra_latency_us": (3.4, "us", "NCCL's own model, NVLink"),
}


def network_inputs(inputs: Inputs, points: Sequence[Points]) -> dict[str, Input]:
    """Every number of the network: given, else measured, else assumed."""
    measured = measured_network(points)
    found = {}
    for name, (assumed, unit, why) in ASSUMED.items():
        given = getattr(inputs, name)
        if given is not None:
            found[name] = Input(given, unit, "given")
        elif name in measured:
            found[name] = Input(*measured[name])
        else:
            found[name] = Input(assumed, unit, f"**assumed**: {why}")
    return found


def measured_network(points: Sequence[Points]) -> dict[str, tuple[float, str, str]]:
    """Bandwidths and latencies from measured all-reduces; of a node's inside from a run on one node, if there is one.

    The time of an all-reduce is fitted as c + d bytes, and c and d are read as the model's: what runs on several nodes take
    longer than the part inside a node belongs to the network.
    """
    found: dict[str, tuple[float, str, str]] = {}
    several = [run for run in points if run.ranks > 1]
    if several:
        per_node = max(math.ceil(run.ranks / run.nodes) for run in several)
        found["gpus_per_node"] = (per_node, "", f"measured: {several[-1].file}.json")
    fixed = per_byte = 0.0
    inside = [run for run in several if run.nodes == 1]
    if inside:
        run, (fixed, per_byte, _) = inside[-1], fit_line(inside[-1].all_reduce_bytes, inside[-1].all_reduce_s)
        n, source = run.ranks, f"measured: {run.file}.json"
        found["intra_latency_us"] = (1e6 * fixed / (2 * (n - 1)), "us", source)
        if per_byte > 0:
            found["intra_bandwidth_gb_s"] = (2 * (n - 1) / n / per_byte / 1e9, "GB/s", source)
    outside = [run for run in several if run.nodes > 1]
    if outside:
        run, (all_fixed, all_per_byte, _) = outside[-1], fit_line(outside[-1].all_reduce_bytes, outside[-1].all_reduce_s)
        m, source = run.nodes, f"measured: {run.file}.json"
        found["latency_us"] = (1e6 * max(all_fixed - fixed, 0.0) / (2 * math.log2(m)), "us", source)
        if all_per_byte > 0:
            rest = all_per_byte - per_byte if all_per_byte > per_byte else all_per_byte
            found["bandwidth_gb_s"] = (2 * (m - 1) / m / rest / 1e9, "GB/s", source)
    return found


def make_network(numbers: dict[str, Input]) -> Network:
    """Return the network of `network_inputs`."""
    value = {name: number.value for name, number in numbers.items()}
    return Network(
        int(value["gpus_per_node"]), value["intra_bandwidth_gb_s"] * 1e9, value["intra_latency_us"] * 1e-6,
        value["bandwidth_gb_s"] * 1e9, value["latency_us"] * 1e-6,
    )  # fmt: skip


def compute_inputs(inputs: Inputs, base: Points | None, source: str) -> dict[str, Input]:
    """Numbers of the computing and of what hides behind it; `base` was measured, unless step times are given."""
    device = base.device if base is not None else "cuda"
    share = (2 / 3, "backward pass of a GPU") if device == "cuda" else (0.0, "the same cores compute and send")
    found = {"backward_share": Input(share[0], "", f"**assumed**: {share[1]}")}
    if inputs.backward_share is not None:
        found["backward_share"] = Input(inputs.backward_share, "", "given")
    if inputs.step_fixed_ms is not None and inputs.step_item_us is not None:
        found["step_fixed_ms"] = Input(inputs.step_fixed_ms, "ms", "given")
        found["step_item_us"] = Input(inputs.step_item_us, "us", "given")
        found["jitter"] = Input(0.0, "", "**assumed**: none")
    else:
        assert base is not None
        fixed, item, _ = fit_line(base.items, base.step_s)
        found["step_fixed_ms"] = Input(1e3 * fixed, "ms", source)
        found["step_item_us"] = Input(1e6 * item, "us", source)
        found["jitter"] = Input(base.jitter, "", source)
    if inputs.jitter is not None:
        found["jitter"] = Input(inputs.jitter, "", "given")
    return found


def make_compute(numbers: dict[str, Input]) -> Compute:
    """Return the computing of `compute_inputs`."""
    return Compute(numbers["step_fixed_ms"].value / 1e3, numbers["step_item_us"].value / 1e6, numbers["jitter"].value)


def make_exchange(workload: Workload, bucket_mib: float, backward_share: float) -> Exchange:
    """Return what a step of the workload sends."""
    updates = tuple(buckets(sizes, bucket_mib * 2**20) for sizes in parameter_bytes(workload))
    return Exchange(updates, backward_share)
