"""The published schema of benchmark records, and the records that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_molgen.efficiency.suites import use_records
from hpc_molgen.efficiency.suites.schema import check, schema_text
from hpc_molgen.errors import HpcMolgenError, InputError
from tests.conftest import CommandLine

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KEPT = sorted((BENCHMARKS / "reports").glob("*.json"))


def test_the_published_schema_is_that_of_the_code(command: CommandLine) -> None:
    assert (BENCHMARKS / "record.schema.json").read_text() == schema_text() == command("benchmark", "schema").stdout


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_records_follow_it(path: Path) -> None:
    check(json.loads(path.read_text()))


def test_a_record_that_does_not_is_refused_with_every_place() -> None:
    record = json.loads(KEPT[0].read_text())
    record["costs"][0]["cpu_s"] = -1
    del record["provenance"]["cpu"]
    record["date_utc"] = "yesterday"
    with pytest.raises(HpcMolgenError, match=r"(?s)date_utc: .*provenance.cpu: Field required.*costs.0.cpu_s: "):
        check(record)


@pytest.mark.parametrize("text", ["[1]", '"words"', "3", "null"])
@pytest.mark.parametrize("tool", ["compare", "guard", "schema"])
def test_a_file_that_is_no_record_is_refused_by_name(tool: str, text: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(text)
    first = BENCHMARKS / "floors.yaml" if tool == "guard" else wrong
    with pytest.raises(InputError, match=r"wrong\.json: no record of a benchmark"):
        use_records(tool, [first, wrong])


def test_what_lacks_parts_of_a_record_is_neither_compared_nor_guarded(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"suite": "md", "results": {}}')
    for tool, first in (("compare", wrong), ("guard", BENCHMARKS / "floors.yaml")):
        with pytest.raises(InputError, match=r"wrong\.json: it does not follow the schema .*Field required; \.\.\.\)"):
            use_records(tool, [first, wrong])
