"""Search of the catalogue in plain language: ``search("linear attention for long video", records())``.

Terms are ORed and weighed as in BM25F (Robertson and Zaragoza, 2009): a word counts more in a name than in a claim,
more the fewer systems have it, and less and less with each repetition. Words of the same meaning and misspelt words
are found as well, for less.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from . import Record
from .words import STOP, SYNONYMS, stem, synonyms, words

#: What a word is worth in each field of a record. What a system is not good for, is not searched.
FIELDS = {
    "slug": 3.0,
    "title": 2.0,
    "keywords": 2.0,
    "family": 2.0,
    "tasks": 2.5,
    "brief": 2.0,
    "summary": 2.0,
    "when": 2.0,
    "cost": 0.5,
    "claims": 0.5,
}
_SATURATION = 2.0
_LENGTH = 0.5
_SYNONYM = 0.7
_TYPO = 0.6
_PREFIX = 0.7
#: What is added where nothing but the system's name is asked for.
_NAME = 10.0


def _words(record: Record, field: str) -> list[str]:
    value = getattr(record, field)
    if field == "claims":
        value = [claim.says for claim in value]
    return words(value if isinstance(value, str) else "\n".join(value))


class Index:
    """The words of a set of records, weighed."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.slugs = sorted(records)
        self.size = max(1, len(self.slugs))
        texts = {field: [_words(records[slug], field) for slug in self.slugs] for field in FIELDS}
        #: words as they are spelt, for corrections
        self.spelt = {word for field in texts.values() for text in field for word in text} | set(SYNONYMS.split())
        #: stem to {slug: weighed frequency}
        self.found: dict[str, dict[str, float]] = {}
        for field, weight in FIELDS.items():
            counts = [Counter(stem(word) for word in text if word not in STOP) for text in texts[field]]
            lengths = [counter.total() for counter in counts]
            mean = sum(lengths) / self.size or 1.0
            for slug, counter, length in zip(self.slugs, counts, lengths, strict=True):
                scale = weight / (1 - _LENGTH + _LENGTH * length / mean)
                for word, count in counter.items():
                    places = self.found.setdefault(word, {})
                    places[slug] = places.get(slug, 0.0) + count * scale

    def alternatives(self, word: str) -> dict[str, float]:
        """Stems to look for instead of a word of the question, and what each is worth."""
        own = stem(word)
        found = dict.fromkeys(synonyms(own), _SYNONYM)
        if own in self.found or found:
            return found | {own: 1.0}
        if len(word) >= 4:
            begun = {s: _PREFIX for s in self.found if s.startswith(own)}
            if begun:
                return begun
        near = corrections(word, self.spelt)
        for right in near:
            found |= dict.fromkeys(synonyms(stem(right)), _SYNONYM * _TYPO)
        return found | {stem(right): _TYPO for right in near}

    def scores(self, text: str) -> dict[str, float]:
        """Slug to score, of the records that have anything of the text."""
        totals: dict[str, float] = {}
        asked = dict.fromkeys(w for w in words(text) if w not in STOP) or dict.fromkeys(words(text))
        for options in {frozenset(self.alternatives(word).items()): None for word in asked}:
            found: dict[str, float] = {}
            for word, worth in options:
                for slug, frequency in self.found.get(word, {}).items():
                    found[slug] = found.get(slug, 0.0) + worth * frequency
            rarity = math.log(1 + (self.size - len(found) + 0.5) / (len(found) + 0.5))
            for slug, frequency in found.items():
                totals[slug] = totals.get(slug, 0.0) + rarity * frequency / (_SATURATION + frequency)
        name = re.sub(r"[^a-z0-9]", "", text.lower())
        return totals | {s: totals.get(s, 0.0) + _NAME for s in self.slugs if s.replace("_", "") == name}


def distance(a: str, b: str, limit: int) -> int:
    """Edits from one word to the other (insert, delete, change, swap neighbours); more than ``limit`` may come out
    as ``limit + 1``."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit and (not before or min(before) > limit):
            return limit + 1
    return row[-1]


def corrections(word: str, known: Iterable[str]) -> list[str]:
    """The known words that a misspelt one may have been; a word of four letters or fewer is left alone."""
    limit = 0 if len(word) < 5 else 1 if len(word) < 8 else 2
    if not limit:
        return []
    letters = set(word)
    alike = (w for w in known if len(w) >= 4 and len(letters.symmetric_difference(w)) <= 2 * limit)
    near = {w: d for w in alike if (d := distance(word, w, limit)) <= limit}
    closest = min(near.values(), default=0)
    return sorted(w for w, d in near.items() if d == closest)


@functools.lru_cache(maxsize=4)
def _index(records: tuple[Record, ...]) -> Index:
    return Index({record.slug: record for record in records})


def search(text: str, records: Mapping[str, Record]) -> list[tuple[str, float]]:
    """Records that have something of a question in plain language, best first.

    Args:
        text: words, in any order; case, endings, British or American spelling do not matter.
        records: what is searched, by slug.

    Returns:
        Slug and score of every record with a score above zero; equal scores by slug.
    """
    scores = _index(tuple(records.values())).scores(text)
    return sorted(((slug, score) for slug, score in scores.items() if score > 0), key=lambda hit: (-hit[1], hit[0]))
