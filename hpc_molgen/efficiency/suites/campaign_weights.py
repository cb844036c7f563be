"""Importance weights in a campaign's report: what all records and runs say of them, seed by seed or as mean and deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hpc_molgen.efficiency.suites.campaign_folder import Campaign, RunReport
from hpc_molgen.efficiency.tables import Table, number, share, unbroken
from hpc_molgen.reweighting import K_HAT_LIMIT

_KEYS = ("ess_fraction", "ess_clipped_fraction", "k_hat", "forward_ess")
_PASSED_OVER = ("results", "series", "facts", "seeds", "weights", "points", "processes")


class Figure(NamedTuple):
    """A figure of one seed, or mean, standard deviation and values of several."""

    mean: float
    sd: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """What a record says in one place: of one seed, or of several at once; figures that it lacks are left out."""

    figures: Mapping[str, Figure]
    n: float | None
    certified: bool

    @property
    def n_seeds(self) -> int:
        """Number of seeds that it is of."""
        return max((len(figure.values) for figure in self.figures.values()), default=1)


@dataclass(frozen=True)
class Weights:
    """Diagnostics of the weights of one surrogate, of one or more seeds."""

    source: str
    what: str
    parts: tuple[Part, ...]

    def figures(self, key: str) -> list[Figure]:
        """Return a figure of all parts that have it."""
        return [part.figures[key] for part in self.parts if key in part.figures]

    def values(self, key: str) -> list[float | None]:
        """Return a figure seed by seed; None where a part lacks it."""
        lacking = Figure(0.0, None, ())
        return [value for part in self.parts for value in part.figures.get(key, lacking).values or (None,) * part.n_seeds]


def weights(campaign: Campaign) -> list[Weights]:
    """Return all importance weights, found by their names in records of any suite, and those of runs."""
    made = [one for run in campaign.runs for one in campaign.guarded(run.name, "its weights", _of_run, run)]
    for name, record in campaign.records.items():
        found: dict[str, list[Part]] = {}
        for path, part in campaign.guarded(name, "its weights", _with_weights, record.get("results"), ()):
            found.setdefault(", ".join(path), []).append(part)
        made += [Weights(name, what, tuple(parts)) for what, parts in found.items()]
    return made


def _of_run(run: RunReport) -> Iterator[Weights]:
    own = run.data.get("weights") or {}
    if own.get("weighted"):
        forward = ((run.data.get("coverage") or {}).get("density") or {}).get("forward_ess")
        yield Weights(run.name, str(own.get("target", "")), (_part({**own.get("importance", own), "forward_ess": forward}),))


def _with_weights(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Part]]:
    """Yield all weights below a value and where they are; methods without any, whose figures are null, are passed over."""
    if isinstance(value, dict):
        if {"ess_fraction", "k_hat"} <= value.keys():
            if value["ess_fraction"] is not None or value["k_hat"] is not None:
                yield path, _part(value)
            return
        named = (str(value["name"]),) if isinstance(value.get("name"), str) else ()
        for key, inner in value.items():
            own = () if key in _PASSED_OVER else (key,)
            yield from _with_weights(inner, (*(path[:-1] if named and path else path), *named, *own))
    elif isinstance(value, list):
        for item in value:
            yield from _with_weights(item, (*path, *_names_of(item)))


def _names_of(item: Any) -> tuple[str, ...]:
    """Return what tells one item of a list from others, but for its seed."""
    if not isinstance(item, dict):
        return ()
    if isinstance(item.get("molecule"), dict):
        return (str(item["molecule"].get("name", "")),)
    words = {"kind": "{}", "n_steps": "{} steps", "variance": "variance {}", "temperature_kelvin": "{} K"}
    return tuple(text.format(item[key]) for key, text in words.items() if isinstance(item.get(key), str | int | float))


def _part(values: Mapping[str, Any]) -> Part:
    """Read figures; certified is what the record calls so, and in which no k-hat of any seed is above the limit."""
    figures = {key: figure for key in _KEYS if (figure := _figure(values.get(key))) is not None}
    worst = max(figures["k_hat"].values) if "k_hat" in figures else None
    certified = bool(values.get("certified", worst is not None)) and (worst is None or worst <= K_HAT_LIMIT)
    n = values.get("n", values.get("n_samples"))
    return Part(figures, None if n is None else float(n), certified)


def _figure(value: Any) -> Figure | None:
    """Read a number, an estimate with its interval, or what was repeated; None where there is none."""
    if isinstance(value, dict) and "mean" in value:
        values = tuple(float(one) for one in value.get("values") or [value["mean"]])
        return Figure(float(value["mean"]), float(value["sd"]) if value.get("n", len(values)) > 1 else None, values)
    value = value["value"] if isinstance(value, dict) else value
    return None if value is None else Figure(float(value), None, (float(value),))


def weights_table(found: Sequence[Weights]) -> Table:
    """One line for each surrogate; of several seeds the smallest and the largest figure, or mean and deviation."""
    rows = []
    for one in found:
        certified = [part.certified for part in one.parts]
        sizes = [Figure(part.n, None, (part.n,)) for part in one.parts if part.n is not None]
        rows.append([
            one.source, one.what, str(sum(part.n_seeds for part in one.parts)), _cell(sizes, lambda v: f"{v:,.0f}"),
            _cell(one.figures("ess_fraction"), share), _cell(one.figures("ess_clipped_fraction"), share),
            _cell(one.figures("k_hat"), lambda v: number(v, 2)), _cell(one.figures("forward_ess"), share),
            "yes" if all(certified) else f"{sum(certified)} of {len(certified)}" if any(certified) else "no",
        ])  # fmt: skip
    columns = ("record", "samples of", "seeds", "N", "ESS", "clipped", "k-hat", "forward ESS", "certified")
    note = (
        "ESS: Kish's, of unclipped weights, over N; clipped: the largest 1e-4 of the weights set to the largest that remains; "
        f"forward: on held-out MD. Certified: k-hat of at most {K_HAT_LIMIT:g}, in the worst seed, and what the record asks "
        "besides (no mode that samples lack, say). Of several seeds the smallest and the largest figure, or, where a record "
        "holds them together, mean ± standard deviation."
    )
    return Table("Effective samples and Pareto k-hat", columns, rows, note, (0, 1))


def _cell(found: Sequence[Figure], write: Callable[[float], str]) -> str:
    if not found:
        return "-"
    if len(found) == 1 and (sd := found[0].sd) is not None:
        return unbroken(f"{write(found[0].mean).removesuffix(' %')} ± {write(sd)}")
    values = [value for figure in found for value in figure.values]
    low, high = write(min(values)), write(max(values))
    return unbroken(low if low == high else f"{low.removesuffix(' %')} to {high}")
