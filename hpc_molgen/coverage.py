"""Does a run's surrogate cover the ensemble? Modes that it misses, by ln q and by populations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import datasets, density_checks
from hpc_molgen.basins import Basin, Labelled, compare_basins, find_basins
from hpc_molgen.density_checks import DensityCheck, LogWeights
from hpc_molgen.ensemble import Ensemble, write_ensemble
from hpc_molgen.reweighting import K_HAT_LIMIT, pareto_k
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.workers import Stopwatch, local_rank, one_thread

if TYPE_CHECKING:
    from hpc_molgen.run import Run

Z_DEFICIT = 3.0  # standard errors by which ln Z of the samples has to fall short
MIN_SHARE = 0.02  # of the partition function: less may be the error of ln q itself
TIMES_LARGEST = 5.0  # mass beyond the largest weight, over the share that this weight stands for
MIN_BEYOND, MOST_BEYOND = 0.005, 0.5  # from the second on that mass is too much, whatever the heaviest sample stands for
N_FITTED = 2000  # frames that they are fitted to, and as many samples
N_BLOCKS = 10  # of a single trajectory
N_OWN = 200  # samples whose ln q is computed again from their positions
BATCH = 500  # frames whose ln q is computed at once
CHECKED = "held-out.h5"


def missing_modes(check: DensityCheck | None, basins: list[Basin], log_q_error: float = 0.0) -> list[str]:
    """Return in words why the surrogate misses part of the ensemble; an empty list when nothing says so.

    Parameters
    ----------
    check : DensityCheck or None
        None where ln w of MD frames means nothing.
    basins : list of Basin
    log_q_error : float
        Systematic error of ln q (a difference between its two directions, say), in nats.
    """
    reasons = []
    if check is not None:
        short = check.deficit
        error = max(short.standard_error, check.bar_error if np.isfinite(check.bar_error) else 0.0)
        if np.isfinite(short.value) and short.value > max(Z_DEFICIT * error, MIN_SHARE + log_q_error):
            reasons.append(
                f"ln Z of the samples is {short.value:.2f} below BAR of samples and MD ({short.value / error:.0f} standard "
                f"errors): the surrogate misses {1 - np.exp(-short.value):.0%} of the ensemble"
            )
        beyond, limit = check.beyond_largest, max(MIN_BEYOND, min(TIMES_LARGEST * check.largest_share, MOST_BEYOND))
        if beyond.low > limit:
            reasons.append(
                f"{beyond.value:.1%} of held-out MD [{beyond.low:.1%}, {beyond.high:.1%}] has a larger weight than every one "
                "of the surrogate's samples"
            )
    for basin in basins:
        if basin.finding == "missing":
            ours, kind = (basin.corrected, "corrected") if basin.corrected else (basin.samples, "raw")
            reasons.append(
                f"basin {basin.name} holds {basin.frames.value:.2%} of held-out MD [{basin.frames.low:.2%}, "
                f"{basin.frames.high:.2%}] and {ours.value:.2%} of the {kind} samples"
            )
    return reasons


def check_coverage(run: Run, weighted: Ensemble, held_out: Ensemble, moved: Ensemble | None = None) -> dict[str, Any]:
    """Check a run's surrogate against held-out MD; write correct/held-out.h5 with the frames whose ln q was computed.

    Parameters
    ----------
    weighted : Ensemble
        The samples with their energies and, if the run has them, their weights.
    held_out : Ensemble
        Frames of the walkers that training never saw.
    moved : Ensemble, optional
        What estimates come from, where the samples were moved: its trajectories are what is independent. Populations are
        compared with these, and what ln w says is of the samples before, no reason against the run.

    Returns
    -------
    dict
        density (DensityCheck or None), skipped (why there is none, or ""), log_q (median, and half the central 68 %, of ln q of
        own samples computed again from their positions, minus that of sampling), basins, missing (reasons in words), before
        (those that are of the samples before they were moved), n_frames, n_units, cpu_s.
    """
    watch, config, seed = Stopwatch(), run.config, run.config.seed
    n_replicates, generator = config.report.bootstrap_samples, numpy_generator(seed, "coverage")
    units, weights = _units(held_out), datasets.boltzmann_weights(held_out)
    chosen = spread_over(units, config.correct.check_frames)
    density, log_q, given, skipped = None, None, None, _why_not(run)
    if not skipped:
        given, log_q = _log_weights(run, weighted, held_out[chosen], units[chosen])
        density = density_checks.check_density(given, n_replicates, generator)
    mended = None if not _weights_are_of_the_molecule(run) else weighted if moved is None else moved
    sets_nm = [part.positions_nm for part in (held_out, weighted, mended) if part is not None]
    names, labels = find_basins(run.system.topology, sets_nm, weights, spread_over(units, N_FITTED), seed)
    ratios = np.full(len(names), np.nan)
    if given is not None:
        ratios = density_checks.relative_densities(given, labels[0][chosen], len(names))
    corrected = None
    if mended is not None:
        own = datasets.boltzmann_weights(mended)
        corrected = Labelled(labels[2], own, None if moved is None else moved.trajectory)
    basins = compare_basins(
        names,
        Labelled(labels[0], weights, units),
        Labelled(labels[1], np.full(len(weighted), 1 / len(weighted))),
        corrected,
        ratios,
        n_replicates,
        generator,
        trusted=mended is None or pareto_k(mended.log_weight) <= K_HAT_LIMIT,
    )
    by_weights = missing_modes(density, [], abs(log_q["median"]) if log_q else 0.0)
    about = {"n_frames": len(chosen) if given else 0, "n_units": len(np.unique(units)), "cpu_s": watch.cpu_s}
    found = {"density": density, "skipped": skipped, "log_q": log_q, "basins": basins}
    reasons = missing_modes(None, basins)
    if moved is not None:
        return found | {"missing": reasons, "before": by_weights} | about
    return found | {"missing": by_weights + reasons, "before": []} | about


def _why_not(run: Run) -> str:
    """Return why ln w of MD frames means nothing or is not wanted; "" where it does."""
    if reason := datasets.why_unweighted(run):
        return f"the run has no importance weights, as {reason}"
    if not run.config.correct.check_frames:
        return "correct.check_frames is 0"
    if not _weights_are_of_the_molecule(run):
        return (
            f"the weights are those of {run.details('featurize')['target']}, an ensemble of which frames of MD are no sample: "
            "only populations are compared"
        )
    if run.config.sample.sampler != "ode":
        return (
            "the weights are those of whole paths of the sampler, and a frame of MD has no path: only populations are compared"
        )
    return ""


def _weights_are_of_the_molecule(run: Run) -> bool:
    return not datasets.why_unweighted(run) and run.config.representation.is_whole


def _units(held_out: Ensemble) -> np.ndarray:
    """Trajectory (n,) of each frame; contiguous parts where there is one alone."""
    if len(np.unique(held_out.trajectory)) > 1:
        return held_out.trajectory
    return np.arange(len(held_out)) * N_BLOCKS // len(held_out)


def spread_over(units: np.ndarray, n: int) -> np.ndarray:
    """Indices (at most n,), ascending, spread evenly over units (n_frames,) and within each."""
    names = np.unique(units)
    shares = [(index + 1) * n // len(names) - index * n // len(names) for index in range(len(names))]
    own = [np.flatnonzero(units == name) for name in names]
    kept = [
        where[np.unique(((np.arange(k) + 0.5) * len(where) / max(k, 1)).astype(int))]
        for where, k in zip(own, shares, strict=True)
    ]
    return np.sort(np.concatenate(kept))


def _log_weights(run: Run, weighted: Ensemble, frames: Ensemble, units: np.ndarray) -> tuple[LogWeights, dict[str, float]]:
    """Return ln w of samples and frames, and how well ln q of own samples is found again; write the frames."""
    from hpc_molgen.dynamics.choice import choose_energies, energy_function

    system = run.system
    own = np.arange(0, len(weighted), max(1, len(weighted) // N_OWN))[:N_OWN]
    log_density = log_density_of(run, np.concatenate([frames.positions_nm, weighted.positions_nm[own]]))
    again = log_density[len(frames) :] - weighted.log_density[own]
    energies = energy_function(system, choose_energies(system), len(frames))(frames.positions_nm)
    checked = dataclasses.replace(frames, reduced_energy=energies, log_density=log_density[: len(frames)])
    write_ensemble(run.path("correct", CHECKED), checked, system, seed=run.config.seed)
    given = LogWeights(weighted.log_weight, log_weights_of(checked), datasets.boltzmann_weights(frames), units)
    again = again[np.isfinite(again)]  # quantiles: a sample of an absurd geometry may not be found again
    low, median, high = np.quantile(again, [0.16, 0.5, 0.84]) if len(again) else np.full(3, np.nan)
    return given, {"median": float(median), "spread": float(high - low) / 2, "n": len(again)}


def log_weights_of(checked: Ensemble) -> np.ndarray:
    """Return ln w = -u - ln q (n,) of frames; inf where q is zero or unknown."""
    found = -checked.reduced_energy - checked.log_density
    return np.where(np.isnan(found), np.inf, found)


def log_density_of(run: Run, positions_nm: np.ndarray, log_temperature: float | None = None) -> np.ndarray:
    """Return ln q (n,), float64, of conformations (n, n_atoms, 3): that of their features, minus ln|det J| of `decode`.

    Flows are asked at a temperature, as ln(T / T0).
    """
    import torch

    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.surrogates.base import density_options, load_surrogate

    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    surrogate: Any = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
    if torch.cuda.is_available():
        surrogate = surrogate.to(f"cuda:{local_rank() % torch.cuda.device_count()}")
    options, found = density_options(surrogate, run.config.sample), []
    options |= {} if log_temperature is None else {"log_temperature": log_temperature}
    with one_thread():
        for part in torch.split(torch.as_tensor(positions_nm, dtype=torch.float64), BATCH):
            features = representation.encode(part)
            _, log_abs_det = representation.decode(features)
            found.append(surrogate.log_density(features, **options).cpu().double() - log_abs_det)
    return np.asarray(torch.cat(found).numpy())
