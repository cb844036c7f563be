"""The configuration of a run: frozen pydantic models that hold every default of the package, and nothing else does.

A key that no model has is an error that lists the right ones, and all errors of a file are shown at once.
"""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from hpc_molgen.errors import InputError

PRESETS = Path(__file__).parent / "presets"


Platform = Literal["auto", "batched", "Reference", "CPU", "CUDA", "OpenCL", "HIP"]


class Model(BaseModel):
    """Base of all configuration models: frozen, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SystemConfig(Model):
    """Which molecule, which energy function, which temperature."""

    name: str = Field("alanine-dipeptide", description="a registered system, or 'pdb' or 'pdb-xml'")
    temperature_kelvin: float = Field(300.0, gt=0)
    pdb: str | None = Field(
        None, description="a structure: a path, or an http(s) address that is fetched once and kept in the cache folder"
    )
    pdb_sha256: str | None = Field(
        None,
        pattern="^[0-9a-fA-F]{64}$",
        description="of the file behind an address; None: that of the first download, written beside the kept file",
    )
    ligand: str | None = Field(
        None, description="residue name, for 'p450' and 't4l-xylene'; None: the largest hetero group but water and haem"
    )
    system_xml: str | None = Field(None, description="a serialised openmm.System, for 'pdb-xml'")
    force_field: tuple[str, ...] = Field(
        ("amber14/protein.ff14SB.xml", "implicit/obc2.xml"), description="OpenMM force field files, for 'pdb'"
    )


class ReferenceConfig(Model):
    """Reference molecular dynamics, or trajectories that the user already has."""

    n_walkers: int = Field(16, ge=2, description="independent walkers")
    starts: Literal["spread", "given"] = Field(
        "spread",
        description="'spread': rotatable torsions cover the torus; 'given': the system's own structure (folded proteins)",
    )
    production_ps: float = Field(300.0, gt=0, description="length of each walker after equilibration")
    equilibration_ps: float = Field(5.0, ge=0)
    integrator: Literal["langevin", "brownian"] = Field("langevin", description="'brownian': overdamped, D = kT / (m friction)")
    timestep_fs: float = Field(1.0, gt=0, le=100, description="above 5 only for models without hydrogen atoms")
    constraints: Literal["none", "hbonds"] = Field("none", description="exact correction needs 'none'")
    friction_per_ps: float = Field(1.0, gt=0)
    save_every_ps: float = Field(0.1, gt=0)
    platform: Platform = Field("auto", description="of OpenMM's, or 'batched'; 'auto': the fastest by a short measurement")
    bias_torsion: str | None = Field(
        None, description="a torsion (for example 'phi') along which a static bias flattens the free energy; None for plain MD"
    )
    tempering_kelvin: tuple[float, ...] = Field(
        (), description="parallel tempering: temperatures above the system's, ascending; each walker is then a ladder of copies"
    )
    swap_every_ps: float = Field(0.1, gt=0, description="time between swaps of 'tempering_kelvin'")
    held_out_fraction: float = Field(0.5, gt=0, lt=1, description="share of the walkers that training never sees")
    trajectories: tuple[str, ...] = Field(
        (), description="the user's own .xtc, .dcd, .h5, or a folder of .npy time series: read instead of simulated"
    )
    trajectory_topology: str | None = Field(None, description="PDB for formats without a topology")


class RepresentationConfig(Model):
    """Coordinates that the surrogate sees."""

    name: str = Field("internal", description="'torsion' or 'internal'; 'cvs' for time series")
    torsions: tuple[str, ...] | Literal["all"] = Field(
        ("phi", "psi"), description="for 'torsion': names (phi, psi, omega, chi1; with an index if several) or 'all'"
    )
    cvs: tuple[str, ...] = Field(
        ("phi", "psi"),
        description="for 'cvs': torsions, rmsd, rg, q, x, y, z, ligand_distance, ...; of time series the names are theirs",
    )


class DiffusionConfig(Model):
    """A diffusion surrogate of structures."""

    name: Literal["diffusion"] = "diffusion"
    hidden: int = Field(256, ge=8, description="width of the network")
    depth: int = Field(3, ge=1, description="residual blocks of the torsional trunk")
    harmonics: int = Field(4, ge=1, description="cos(k a), sin(k a) for k = 1..harmonics as inputs")
    schedule: Literal["linear", "cosine"] = "cosine"


class GanConfig(Model):
    """A WGAN-GP surrogate of trajectories of collective variables."""

    name: Literal["gan"]
    n_frames: int = Field(64, ge=4, description="frames of the windows trained on; generated trajectories may be longer")
    windows: Literal["random", "chunks", "bins", "whole"] = Field(
        "random", description="'chunks': one after the other; 'bins': one of each of time_bins; 'whole': whole series"
    )
    time_bins: int = Field(10, ge=1, description="for windows 'bins': equal parts of every series")
    architecture: Literal["convolutional", "perceptron"] = Field(
        "convolutional", description="'perceptron': the published networks, as a baseline"
    )
    hidden: int = Field(16, ge=4, description="channels of the finest level; they double with each coarser one up to 'widest'")
    widest: int = Field(128, ge=4)
    levels: int = Field(4, ge=1, description="times that the generator doubles its frames")
    latent: int = Field(16, ge=1, description="channels of the coarse latent sequence")
    lags: int = Field(6, ge=0, description="lags tau = 1, 2, 4, ... of the critic of tuples (x_t, x_(t+tau), ...); 0 for none")
    tuples: int = Field(8, ge=1, description="tuples for each lag and window")
    tuple_frames: int = Field(3, ge=2, description="frames of a tuple")
    tuple_hidden: int = Field(64, ge=4, description="width of the critic of tuples")
    tuple_weight: float = Field(1.0, ge=0, description="of the loss of the critic of tuples")
    window_weight: float = Field(0.0, ge=0, description="of the loss of a critic of whole windows, which costs more")
    critic_updates: int = Field(5, ge=1, description="updates of the critic for one of the generator")
    gradient_penalty: float = Field(10.0, ge=0)


def _surrogate_name(values: Any) -> str:
    name = values.get("name", "diffusion") if isinstance(values, dict) else getattr(values, "name", None)
    return str(name)


SurrogateConfig = Annotated[
    Annotated[DiffusionConfig, Tag("diffusion")] | Annotated[GanConfig, Tag("gan")], Discriminator(_surrogate_name)
]


class TrainConfig(Model):
    """Training of the surrogate."""

    n_steps: int = Field(4000, ge=1)
    batch_size: int = Field(1024, ge=1, description="global batch, over all ranks")
    accumulate: int = Field(1, ge=1, description="micro-batches that each rank cuts its part of the batch into, to save memory")
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after a linear warm-up")
    warmup_steps: int = Field(100, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    validate_every: int = Field(500, ge=1)
    log_every: int = Field(50, ge=1)
    checkpoint_every_s: float = Field(60.0, gt=0)
    precision: Literal["float32", "bf16", "float64"] = Field(
        "float32", description="'bf16': autocast where the device has it, master weights in float32"
    )
    compile: bool = Field(False, description="torch.compile: minutes at the start, faster steps on GPUs")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1, description="CPU threads of each rank; more pay only for wide networks on an idle machine")


class SampleConfig(Model):
    """Sampling of the trained surrogate."""

    n_samples: int = Field(10_000, ge=1, description="structures, or trajectories")
    n_frames: int | None = Field(None, ge=4, description="of each trajectory (None: as trained)")
    sampler: Literal["ode", "ancestral"] = Field("ode", description="'ancestral' has no ln q")
    n_steps: int | None = Field(
        None, ge=1, description="'ode': Runge-Kutta steps of 4 evaluations (None: 8); 'ancestral': noise levels (None: 1000)"
    )
    log_density: bool = Field(True, description="exact ln q along the ODE; importance weights need it")
    shard_size: int = Field(1000, ge=1)


class CorrectConfig(Model):
    """Importance weights and the structures written from them."""

    weights: bool = Field(True, description="False keeps the raw samples (a surrogate without ln q needs this)")
    n_structures: int = Field(100, ge=1, description="PDB files, drawn by systematic resampling")


class FarmConfig(Model):
    """Molecular dynamics started from the written structures."""

    starts: str | None = Field(
        None, description="a folder of PDB files (weights.csv: lines file,weight) or an ensemble .h5; None: those of 'correct'"
    )
    n_replicas: int = Field(20, ge=1, description="how many of the structures are run, spread evenly over them")
    rounds: int = Field(
        1,
        ge=1,
        description="as many replicas again in each further round, from frames where the weighted estimate is least certain",
    )
    minimise_iterations: int = Field(1000, ge=0)
    solvent: Literal["same", "tip3p"] = Field("same", description="'same': the energy function of the run; 'tip3p': explicit")
    box_nm: float = Field(3.0, gt=0)
    solute_force_field: str = Field("amber99sbildn.xml", description="for 'tip3p'")
    heating_ps: float = Field(0.0, ge=0, description="rise from heating_from_kelvin, at constant volume")
    heating_from_kelvin: float = Field(10.0, gt=0)
    constant_volume_ps: float = Field(0.0, ge=0, description="equilibration before the barostat sets in")
    equilibration_ps: float = Field(2.0, ge=0, description="equilibration under the conditions of the production")
    restraint_kj_mol_nm2: float = Field(
        0.0, ge=0, description="springs on the molecule's heavy atoms while heated, released over equilibration_ps"
    )
    production_ps: float = Field(20.0, gt=0)
    timestep_fs: float = Field(
        2.0,
        gt=0,
        le=100,
        description="4 with constraints 'hbonds' and hydrogen_mass_amu 3; above 5 only without hydrogen atoms",
    )
    constraints: Literal["none", "hbonds"] = "hbonds"
    hydrogen_mass_amu: float | None = Field(None, gt=1, le=4, description="heavy hydrogens: mass from the bonded heavy atom")
    friction_per_ps: float = Field(1.0, gt=0)
    save_every_ps: float = Field(0.2, gt=0)
    temperature_kelvin: float | None = Field(None, gt=0, description="None: the system's")
    pressure_bar: float | None = Field(None, gt=0, description="NPT at this pressure; explicit solvent only")
    observables: tuple[str, ...] = Field(
        ("rmsd", "rg"), description="of every frame: rmsd, rg, q, torsions (phi, psi, chi1); energy and temperature always"
    )
    platform: Platform = Field("auto", description="of OpenMM's, or 'batched'; 'auto': the fastest by a short measurement")
    engine: Literal["openmm", "gromacs"] = Field(
        "openmm", description="'gromacs' for explicit solvent on CPUs, where gmx is installed; same inputs, ledger and files"
    )
    per_gpu: int | None = Field(
        None, ge=1, description="processes that share a GPU where there is no MPI; None: by a short measurement"
    )
    chunk_s: float = Field(20.0, gt=0, description="seconds between two records of a replica: what a kill can cost")
    minutes: float | None = Field(
        None, gt=0, description="stop before this time is over, to go on later (Slurm's limit is known)"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> FarmConfig:
        if self.platform == "batched" and self.solvent != "same":
            raise ValueError("platform 'batched' computes without water: use solvent 'same', or another platform")
        if self.platform == "batched" and self.restraint_kj_mol_nm2:
            raise ValueError("platform 'batched' knows no restraints: set restraint_kj_mol_nm2 0, or another platform")
        if self.engine == "gromacs" and (self.solvent == "same" or self.platform != "auto"):
            raise ValueError("engine 'gromacs' runs boxes of water: set solvent tip3p, and leave platform 'auto'")
        if self.pressure_bar is not None and self.solvent != "tip3p":
            raise ValueError("pressure_bar needs explicit solvent (solvent: tip3p)")
        if self.restraint_kj_mol_nm2 and not self.heating_ps + self.constant_volume_ps + self.equilibration_ps:
            raise ValueError("restraint_kj_mol_nm2 acts while heating and equilibrating, which have no length")
        return self


class StatesConfig(Model):
    """Named states of time series, by cores along a sum of features."""

    along: dict[str, float] = Field(description="weight of each feature in the coordinate, for example {q: 1}")
    names: tuple[str, ...]
    cores: tuple[tuple[float, float], ...] = Field(description="intervals of the coordinate, ascending, one for each name")

    @model_validator(mode="after")
    def _cores_ascend(self) -> StatesConfig:
        edges = [edge for core in self.cores for edge in core]
        if len(self.names) != len(self.cores) or len(self.names) < 2 or edges != sorted(edges):
            raise ValueError("report.states needs two names or more, and as many cores, ascending and apart")
        return self


class ReportConfig(Model):
    """The efficiency report."""

    cv: str = Field("phi", description="torsion whose sign separates the two states of the free-energy difference")
    bootstrap_samples: int = Field(200, ge=20)
    baseline_steps: int = Field(100_000, ge=1000, description="steps for measuring the speed of the best plain MD")
    states: StatesConfig | None = Field(None, description="of trajectories: states whose kinetics are compared")
    lags: tuple[int, ...] = Field((1, 2, 5, 10, 20, 50), description="of trajectories: frames of the implied timescales")
    n_clusters: int = Field(100, ge=2, description="of trajectories: centres of k-means of the Markov state models")
    ck_multiples: tuple[int, ...] = Field((1, 2, 3, 5), description="of trajectories: of the middle lag, Chapman-Kolmogorov")
    memorisation_frames: int = Field(64, ge=2, description="of trajectories: windows that are looked for in the training set")
    tolerance: float = Field(1.0, gt=0, description="of trajectories: factor on the tolerances of the quality gate")


class RunConfig(Model):
    """Everything that defines a run."""

    name: str = "run"
    seed: int = 1
    system: SystemConfig = SystemConfig()
    reference: ReferenceConfig = ReferenceConfig()
    representation: RepresentationConfig = RepresentationConfig()
    surrogate: SurrogateConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    correct: CorrectConfig = CorrectConfig()
    farm: FarmConfig = FarmConfig()
    report: ReportConfig = ReportConfig()

    @property
    def makes_trajectories(self) -> bool:
        """Whether the surrogate makes trajectories of collective variables rather than structures."""
        return isinstance(self.surrogate, GanConfig)

    @model_validator(mode="after")
    def _weights_need_a_density(self) -> RunConfig:
        if self.makes_trajectories:
            return self  # `correct` has no weights for it, and says so
        if self.correct.weights and (self.sample.sampler == "ancestral" or not self.sample.log_density):
            raise ValueError(
                "correct.weights needs ln q: use sample.sampler 'ode' with sample.log_density true, "
                "or set correct.weights false"
            )
        return self

    @model_validator(mode="after")
    def _ladders_ascend(self) -> RunConfig:
        reference = self.reference
        ladder = (self.system.temperature_kelvin, *reference.tempering_kelvin)
        if any(hot <= cold for cold, hot in itertools.pairwise(ladder)):
            raise ValueError(
                f"reference.tempering_kelvin {list(ladder[1:])} must ascend from above system.temperature_kelvin {ladder[0]:g}"
            )
        if reference.tempering_kelvin and reference.bias_torsion:
            raise ValueError("reference.tempering_kelvin and reference.bias_torsion exclude each other: choose one")
        if reference.tempering_kelvin and reference.platform not in ("auto", "batched"):
            raise ValueError("reference.tempering_kelvin runs in the batched engine: use reference.platform auto or batched")
        return self

    @model_validator(mode="after")
    def _held_out_walkers(self) -> RunConfig:
        n_files = len(self.reference.trajectories)
        n = max(2, n_files) if n_files else self.reference.n_walkers  # a single file is cut into two
        if not 0 < n_held_out(n, self.reference.held_out_fraction) < n:
            raise ValueError(
                f"reference.held_out_fraction {self.reference.held_out_fraction} of {n} trajectories leaves none for training "
                "or none for validation"
            )
        return self

    @model_validator(mode="after")
    def _exact_weights_need_a_flexible_reference(self) -> RunConfig:
        constrained = self.reference.constraints != "none" and not self.reference.trajectories
        if self.representation.name == "internal" and self.correct.weights and constrained:
            raise ValueError(
                "reference.constraints must be 'none' for exact weights of all internal coordinates: constrained bonds do not "
                "vibrate, so the surrogate would not cover the flexible molecule (or set correct.weights false)"
            )
        return self


def n_held_out(n: int, fraction: float) -> int:
    """How many of the first `n` trajectories are held out."""
    return int(n * fraction + 1e-9)


def preset_names() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _walk(model: Any, location: tuple[int | str, ...]) -> tuple[Any, list[str]]:
    """Return the model at `location` (None below the last) and the keys that lead there, as the user writes them."""
    keys: list[str] = []
    for part in location:
        if isinstance(model, dict):  # the members of a union, by tag, which is no key of the file
            model = model.get(str(part))
            continue
        keys.append(str(part))
        field = model.model_fields.get(str(part)) if hasattr(model, "model_fields") else None
        model = None if field is None else field.annotation
        if model is not None and not hasattr(model, "model_fields"):
            tagged = [members for member in get_args(model) if (members := get_args(member))]
            model = {extra[0].tag: kind for kind, *extra in tagged if extra and isinstance(extra[0], Tag)} or None
    return model, keys


def explain(error: ValidationError, model: type[Model], source: str) -> str:
    """Return every error of a file in one message; an unknown key comes with the keys that `model` has there."""
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        key = ".".join(_walk(model, location)[1])
        if problem["type"] == "extra_forbidden":
            valid = sorted(getattr(_walk(model, location[:-1])[0], "model_fields", ()))
            close = difflib.get_close_matches(str(location[-1]), valid, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            lines.append(f"{key}: unknown key{hint}; the keys here are: {', '.join(valid)}")
        elif problem["type"] == "union_tag_invalid":
            context = problem["ctx"]
            lines.append(f"{key}.name: there is no {context['tag']!r}; there are: {context['expected_tags']}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if isinstance(problem["input"], dict | BaseModel) else f" (given: {problem['input']!r})"
            lines.append(f"{key + ': ' if key else ''}{message}{given}")
    listed = "\n  ".join(lines)
    return f"{source}: {len(lines)} error(s) in the configuration:\n  {listed}"


def assign(values: dict[str, Any], assignment: str) -> None:
    """Enter ``key=value`` or ``section.key=value`` into nested dictionaries; the value is YAML."""
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {assignment}: write key=value, for example train.n_steps=1000")
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {assignment}: '{section}' holds a value, not a section")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {assignment}: the value is not valid YAML ({error})") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping (an empty file is an empty one)."""
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable YAML file ({error})") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"{path}: the configuration must be a mapping of sections, not a {type(values).__name__}")
    return values


def load_config(source: str, assignments: list[str] | None = None) -> RunConfig:
    """Read a preset by name or a YAML file by path, apply ``key=value`` assignments, validate.

    Raises
    ------
    InputError
        With every error of the configuration in one message.
    """
    path = Path(source)
    if not path.is_file():
        preset = PRESETS / f"{source}.yaml"
        if not preset.is_file():
            raise InputError(
                f"{source}: neither a configuration file nor a preset; the presets are: {', '.join(preset_names())}"
            )
        path = preset
    values = read_yaml(path)
    for assignment in assignments or []:
        assign(values, assignment)
    try:
        return _with_absolute_paths(RunConfig.model_validate(values))
    except ValidationError as error:
        raise InputError(explain(error, RunConfig, str(path))) from error


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Make the user's files findable from every folder and every node."""

    def absolute(name: str | None) -> str | None:
        return str(Path(name).expanduser().absolute()) if name is not None and Path(name).expanduser().exists() else name

    system, reference = config.system, config.reference
    files = tuple(absolute(name) or name for name in system.force_field)
    paths = {"pdb": absolute(system.pdb), "system_xml": absolute(system.system_xml), "force_field": files}
    trajectories = tuple(absolute(name) or name for name in reference.trajectories)
    named = {"trajectories": trajectories, "trajectory_topology": absolute(reference.trajectory_topology)}
    farm = config.farm.model_copy(update={"starts": absolute(config.farm.starts)})
    return config.model_copy(
        update={"system": system.model_copy(update=paths), "reference": reference.model_copy(update=named), "farm": farm}
    )


def dump_config(config: Model) -> str:
    """Return the resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
