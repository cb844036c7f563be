"""Write the figures of README.md from the records in benchmarks/reports, so that no number there is anybody's memory.

python benchmarks/readme.py            writes the block between the two marks
python benchmarks/readme.py --check    changes nothing; exits with 1, and shows the difference, if the block is another
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_molgen.efficiency.suites import campaign_verdict
from hpc_molgen.efficiency.suites.campaign_verdict import Method
from hpc_molgen.efficiency.tables import number

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- figures: written by benchmarks/readme.py from benchmarks/reports -->"
END = "<!-- end of figures -->"
RUN = "alanine-dipeptide"
PLACE = "benchmarks/reports"  # of the reports, from README.md


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the block, or check it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if README.md differs from the records")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--reports", type=Path, default=ROOT / PLACE)
    given = parser.parse_args(arguments)
    before = given.readme.read_text()
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        print(f"{given.readme}: needs the line '{BEGIN}' and, after it, '{END}', once each", file=sys.stderr)
        return 2
    try:
        text = block(given.reports)
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as problem:
        print(
            f"{given.reports}: does not hold what README.md is written from ({type(problem).__name__}: {problem})",
            file=sys.stderr,
        )
        return 2
    after = before[: before.index(BEGIN)] + f"{BEGIN}\n{text}\n" + before[before.index(END) :]
    if given.check:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "README.md", "by the records", lineterm="", n=1)
        print("\n".join(lines), end="\n" if before != after else "")
        return int(before != after)
    given.readme.write_text(after)
    return 0


def block(reports: Path) -> str:
    """Return what stands between the two marks: pictures, the table of the demo's run, the verdict, and links."""
    run = _read(reports / RUN / "report.json")
    rows = "\n".join(f"| {what} | {value} |" for what, value in _rows(run, _read(reports / "tempering-laptop.json")))
    origin = next(iter(run["provenance"]["stages"].values()))
    return "\n".join([
        _wrapped(f"From a real one ({run['system']['description']}; {run['config']['system']['temperature_kelvin']:g} K; "
                 f"{origin['cores']} cores, {origin['cpu']}; command: `make demo`):"), "",
        f"![(phi, psi) of held-out MD, raw and corrected samples]({PLACE}/{RUN}/figures/maps.png)", "",
        "| figure | value |", "|---|---|", rows, "",
        _verdict(_read(reports / "verdict-laptop.json"), _read(reports / "flow-laptop.json")), "",
        f"![precision of dF(phi > 0) against core-seconds from zero]({PLACE}/verdict-laptop.png)", "", _links(reports),
    ])  # fmt: skip


def _rows(run: dict[str, Any], tempering: dict[str, Any]) -> list[tuple[str, str]]:
    weights, delta, stages = run["weights"], run["delta_f"], run["costs"]["stages"]
    cv = run["torsions"]["names"][0]
    converged = tempering["results"]["main"]["dF_kt"][0]
    divergence = next(row for row in run["divergences"] if " x " in row["observable"] and row["label"] == "corrected samples")
    forward = run["coverage"]["density"]["forward_ess"]
    spent = {stage["stage"]: stage["cpu_s"] for stage in stages}
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent.items())
    return [
        (
            f"effective sample size, weights of {weights['target']}",
            f"{100 * weights['ess_fraction']:.1f} % of {weights['n']:,}, Pareto k-hat {weights['k_hat']:.2f}",
        ),
        (
            f"dF({cv} > 0), corrected samples / held-out MD / converged by parallel tempering",
            f"{_interval(delta['corrected'], 2)} / {_interval(delta['reference'], 2)} / {_interval(converged, 3)} kT",
        ),
        (
            f"divergence of {divergence['observable']} bins over its noise floor, corrected samples",
            f"{divergence['ratio']:.2f}",
        ),
        (
            "forward ESS on held-out MD",
            f"{100 * forward['value']:.1f} % [{100 * forward['low']:.1f}, {100 * forward['high']:.1f}]",
        ),
        (
            "cost of the whole run",
            f"{sum(spent.values()):.0f} CPU s ({parts}), {sum(stage['wall_s'] for stage in stages) / 60:.1f} minutes",
        ),
        ("verdict", f"{run['verdict']['headline']}{_speeds(run['baseline_md'])}"),
    ]


def _interval(estimate: dict[str, Any], digits: int) -> str:
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _speeds(measured: list[dict[str, Any]]) -> str:
    """Speed of MD of many copies at once beside that of the other engine, with the reference's own protocol."""
    own = [row for row in measured if row["timestep_fs"] == measured[0]["timestep_fs"] and row["constraints"] == "none"]
    per_day = {row["platform"]: 86400 * row["mean"] for row in own}
    if "batched" not in per_day or len(per_day) < 2:
        return ""
    others = ", ".join(f"OpenMM {name}: {_rounded(value)}" for name, value in per_day.items() if name != "batched")
    step = f"{measured[0]['timestep_fs']:g} fs"
    return f"; MD of many copies at once makes {_rounded(per_day['batched'])} ns a day and core at {step} ({others})"


def _rounded(value: float) -> str:
    """Two digits, as more are the machine's mood."""
    return f"{float(f'{value:.2g}'):,.0f}"


def _verdict(record: dict[str, Any], flow: dict[str, Any]) -> str:
    found = campaign_verdict.methods(record)
    md, surrogate, particles = (campaign_verdict.best(found, kind) for kind in ("MD", "surrogate", "particles"))
    text = f"From zero and over all methods (`hpc-molgen benchmark verdict`, [its record]({PLACE}/verdict-laptop.md)): "
    if md is None or surrogate is None:
        text += campaign_verdict.of_record("verdict-laptop", record).sentence
    else:
        value, low, high, n = campaign_verdict.ratio_of(md, surrogate)
        who = campaign_verdict.who_wins(low, high)
        crossing = ((surrogate.row["ratios"].get("best MD") or {}).get("crossing") or {}).get("words", "not known")
        text += (
            f"at {campaign_verdict.TARGET} {who}. The best surrogate ({surrogate.row['name']}) takes {_times(surrogate)}, the "
            f"best MD ({md.row['name']}) {_times(md)}; the time of MD over that of the surrogate is {number(value, 2)} "
            f"[{number(low, 2)}, {number(high, 2)}] (95 %, {n} seeds). Where the surrogate's curve is ahead: {crossing}."
        )
    if particles is not None:
        name = particles.row["name"].removeprefix("no training: ")
        text += f" Without any training ({name}) it takes {_times(particles)}."
    seeds = flow["results"][0]["seeds"]
    shares, training = [100 * seed["ess_fraction"] for seed in seeds], [seed["parts"]["train_cpu_s"] for seed in seeds]
    text += (
        f" A flow that is trained for {number(min(training))} to {number(max(training))} CPU seconds "
        f"([record]({PLACE}/flow-laptop.md)) makes samples of which {min(shares):.1f} to {max(shares):.1f} % count."
    )
    return _wrapped(text)


def _times(method: Method) -> str:
    known = [time for time in method.times if time is not None]
    extrapolated = any(outcome["kind"] == "extrapolated" for outcome in method.row["outcomes"])
    return f"{number(min(known))} to {number(max(known))} CPU seconds{', extrapolated' if extrapolated else ''}"


def _wrapped(text: str) -> str:
    """Wrap a paragraph; no line begins with what Markdown would take for a quotation or a list."""
    together = text.replace(" > 0", "\0>\0000")
    return textwrap.fill(together, 128, break_long_words=False, break_on_hyphens=False).replace("\0>\0000", " > 0")


def _links(reports: Path) -> str:
    runs = ", ".join(
        f"[{path.parent.name}]({PLACE}/{path.parent.name}/report.md)" for path in sorted(reports.glob("*/report.md"))
    )
    records = ", ".join(f"[{path.stem}]({PLACE}/{path.stem}.md)" for path in sorted(reports.glob("*.json")))
    return _wrapped(
        f"All of it in one, with what missed its target and what was left out: the [campaign report]({PLACE}/report.md) "
        f"(`hpc-molgen benchmark report {PLACE}`). Reports of runs: {runs}. Records: {records}."
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


if __name__ == "__main__":
    sys.exit(main())
