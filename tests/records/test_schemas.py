"""The published JSON schemas: those of the records, and what each record in the tests validates against."""

from __future__ import annotations

import json

import pytest
from support import records as made
from support.paths import ROOT
from support.schemas import wrong_in

from lorasize import report
from lorasize.records.schemas import ARTIFACTS, schemas

FOLDER = ROOT / "docs" / "schemas"


def test_the_published_schemas_are_those_of_the_records() -> None:
    published = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert published == schemas(), "run `python -m lorasize.records.schemas docs/schemas`"
    assert len(published) == len(ARTIFACTS)


@pytest.mark.parametrize("name", list(made.RECORDS))
def test_a_record_fits_its_schema(name: str) -> None:
    assert wrong_in(json.loads(report.to_json(made.RECORDS[name]))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(made.RECORDS))
def test_a_lost_or_changed_field_is_caught_and_a_new_one_is_not(name: str) -> None:
    document = json.loads(report.to_json(made.RECORDS[name]))
    assert wrong_in(document | {"added_later": 1}) == []
    key = next(k for k in document if k != "schema")
    for wrong in ({k: v for k, v in document.items() if k != key}, document | {key: {"odd": [1]}}):
        assert wrong_in(wrong) != []
