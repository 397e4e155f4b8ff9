"""Every record of the catalogue is complete."""

from __future__ import annotations

import re

import pytest

from foveate.catalog import FAMILIES, TASKS
from foveate.claims import KINDS
from foveate.registry import get_system, list_systems

ARTICLES = [slug for slug in list_systems() if get_system(slug).family != "baseline"]


def sentence(text: str) -> bool:
    return bool(re.match(r"[A-Z\"(0-9`\[<+±Δ]", text)) and text.endswith((".", ".)", '."'))


@pytest.mark.parametrize("slug", list_systems())
def test_a_record_says_what_when_and_at_what_cost(slug: str):
    record = get_system(slug)
    assert record.title
    assert record.licence
    assert record.family in FAMILIES, record.family
    assert set(record.tasks) <= set(TASKS), set(record.tasks) - set(TASKS)
    for text in (record.summary, record.when, record.when_not, record.cost):
        assert sentence(text), text
    for text in (*record.reconstructed, *record.unverified):
        assert sentence(text), text
    assert 3 <= len(record.keywords) <= 14
    for claim in record.claims:
        assert sentence(claim.says), claim.says
        assert claim.kind in KINDS


@pytest.mark.parametrize("slug", ARTICLES)
def test_a_publication_can_be_cited_and_claims_something(slug: str):
    record = get_system(slug)
    assert record.claims
    assert 1950 < record.year < 2030
    assert re.fullmatch(r"(\d{4}\.\d{4,5}|)", record.arxiv), record.arxiv
    assert re.match(r"(https://\S+|$)", record.code), record.code
    entry = re.fullmatch(r"\s*@\w+\{\w+,\n(.*)\n\}\s*", record.bibtex, re.DOTALL)
    assert entry, record.bibtex
    for field in ("title", "author", "year"):
        assert re.search(rf"^\s*{field}\s*=", entry[1], re.MULTILINE), field
