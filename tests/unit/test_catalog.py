"""Every record of the catalogue is complete."""

from __future__ import annotations

import re

import pytest

from foveate.catalog import CLAIM_KINDS, FAMILIES, TASKS
from foveate.claims import KINDS
from foveate.registry import get_system, list_systems

#: The systems that foveate is about; the other records are baselines and common parts.
SYSTEMS = """
aaren acmil avgn balanced_visual_attention beyond_llms biformer blended_video_editing broadway cace_net
circuit_reuse colormnet csa davit deformable_3d_attention delta_activation dependency_vit dinat ditctrl dsf
dynamic_confidence dynamic_visual_fmri event_flow fancyvideo faster_neighborhood_attention favit focalnet
framepainter frozen_llm_encoder gano gated_class_attention ge_adapter hip_attention histn ila lamamba_diff
landmark_attention lasp2 lightning_attention lightning_attention_2 lingen lita little_bit_attention llava_st
mamba_mixer mambaout maxvit motion_clr motion_i2v motion_mamba mvbench oat ovo_bench polarized_self_attention
predformer pres rleegnet routing_transformer s2_attention se_swin_fer search_asymmetry seer_attention segmif
selective_s4 sentence_attention sigmoid_attention skeleton_1d_cnn smtc snn_delays sparsifiner squeeze_time storm
swin_unetr tc_llava tcnca tempcompass tempme temporal_bench timesnet titans tomato ts_lstm video_director
video_factory vivit_frozen vlanet vsa vstar
"""
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
    assert 10 <= len(record.brief) <= 60, record.brief
    assert re.match(r"[A-Z]", record.brief)
    assert not record.brief.endswith("."), "it is a line of a list, no sentence"
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


def test_a_record_and_a_check_name_the_same_kinds_of_claim():
    assert CLAIM_KINDS == KINDS


def test_the_catalogue_holds_all_87_publications():
    assert len(SYSTEMS.split()) == 87
    assert set(SYSTEMS.split()) <= set(list_systems()), set(SYSTEMS.split()) - set(list_systems())


@pytest.mark.parametrize("slug", [s for s in list_systems() if get_system(s).weights])
def test_weights_on_record_are_for_sizes_and_layouts_that_there_are(slug: str):
    system = get_system(slug)
    for weights in system.weights:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", weights.where), weights.where
        assert weights.licence
    sizes = {name: entry for entry in system.provides for name in entry.configurations}
    if not sizes:
        pytest.skip(f"{slug} has no published sizes yet")
    for weights in system.weights:
        assert weights.name in sizes, f"{weights.name} is no published size of {slug}"
        assert weights.layout in sizes[weights.name].load().official_keys, weights.layout
