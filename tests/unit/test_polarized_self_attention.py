"""Polarized self-attention: its three versions by their words, the networks around it, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.polarized_self_attention import PolarizedSelfAttention
from foveate.models.vision.polarized_self_attention.hrnet import PolarizedHRNet
from foveate.models.vision.polarized_self_attention.resnet import PolarizedResNet


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def by_the_words(mixer: PolarizedSelfAttention, x: Tensor) -> Tensor:
    """Every product as it is written, on ``(batch, places, dim)``."""

    def channels(x: Tensor) -> Tensor:
        z = (mixer.v_right(x) * mixer.q_right(x).softmax(1)).sum(1)
        return torch.sigmoid(mixer.norm(mixer.up(z)))[:, None]

    def places(x: Tensor) -> Tensor:
        query, values = mixer.q_left(x).mean(1), mixer.v_left(x)
        if mixer.variant == "paper":
            scores = (values * query.softmax(-1)[:, None]).sum(-1)
        elif mixer.layout == "parallel":
            scores = (values * query[:, None]).sum(-1).softmax(1)
        else:
            scores = (values.softmax(1) * query[:, None]).sum(-1)
        return torch.sigmoid(scores)[..., None]

    if mixer.layout == "parallel":
        return x * channels(x) + x * places(x)
    x = x * channels(x)
    return x * places(x)


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("layout", ["parallel", "sequential"])
def test_the_versions_are_what_is_said_of_them(layout: str, variant: str) -> None:
    mixer = PolarizedSelfAttention(24, layout=layout, variant=variant).double()
    x = torch.randn(2, 5, 7, 24, dtype=torch.float64)
    expected = by_the_words(mixer, x.flatten(1, 2)).unflatten(1, (5, 7))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


def test_the_parallel_codes_place_gates_are_nearly_a_half() -> None:
    gates = PolarizedSelfAttention(16).place_gate(5 * torch.randn(2, 30, 30, 16))
    assert 0.5 <= float(gates.min()) <= float(gates.max()) <= 0.7311


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dim": 1}, "at least 2 channels"),
        ({"dim": 7, "layout": "sequential"}, "at least 8 channels"),
        ({"dim": 8, "layout": "both"}, "layout='both'"),
        ({"dim": 8, "variant": "thesis"}, "variant='thesis'"),
        ({"dim": 8, "reduction": 0}, "reduction=0"),
        ({"dim": 8, "up_ratio": 1.5}, r"up_ratio=1\.5"),
    ],
)
def test_illegal_options(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        PolarizedSelfAttention(**options)


def test_looks_are_the_gates() -> None:
    for layout in ("parallel", "sequential"):
        mixer, x = PolarizedSelfAttention(16, layout=layout).eval(), torch.randn(2, 3, 4, 16)
        places, channels = (look.values for look in mixer.look(x))
        assert places.shape == (2, 1, 3, 4)
        combined = channels + places if layout == "parallel" else channels * places
        torch.testing.assert_close(mixer(x), x * combined.movedim(1, -1))


def test_gates_stand_behind_the_first_convolution_of_every_block() -> None:
    for gates, count in (("parallel", 3), ("sequential", 3), ("none", 0)):
        model = PolarizedResNet(num_classes=2, depths=(1, 2), width=8, gates=gates)
        found = [m for m in model.modules() if isinstance(m, PolarizedSelfAttention)]
        assert len(found) == count
        assert [m.dim for m in found] == [8, 16, 16][:count]
    hrnet = PolarizedHRNet(num_classes=2, width=8, modules=(1, 1), blocks=1, stem_width=8, stem_blocks=1)
    found = [m.dim for m in hrnet.modules() if isinstance(m, PolarizedSelfAttention)]
    assert found == [8, 16, 8, 16, 32], "basic blocks have gates, the first stage's bottlenecks none"


def small_hrnet(**options: object) -> PolarizedHRNet:
    given = {"num_classes": 3, "width": 8, "modules": (1, 1), "blocks": 1, "stem_width": 8, "stem_blocks": 1}
    return PolarizedHRNet(**{**given, **options}).eval()


def test_hrnet_answers_for_every_pixel_of_any_image() -> None:
    model = small_hrnet()
    for size in ((64, 64), (33, 50), (16, 70)):
        x = torch.randn(1, 3, *size)
        assert model(x).shape == (1, 3, *size)
        maps = model.pyramid(x)
        assert [y.shape[1] for y in maps] == [info.channels for info in model.feature_info] == [8, 16, 32]
        for y, info in zip(maps, model.feature_info, strict=True):
            assert y.shape[2:] == tuple(-(-side // info.reduction) for side in size)


def test_hrnets_head_comes_and_goes() -> None:
    model, x = small_hrnet(), torch.randn(1, 3, 32, 32)
    model.reset_classifier(0)
    assert model(x).shape == (1, 8 + 16 + 32, 32, 32)
    model.reset_classifier(4)
    assert model.eval()(x).shape == (1, 4, 32, 32)


def test_hrnet_segments_images_alone() -> None:
    volume = SimpleNamespace(task="segment", size=(8, 8, 8), channels=1, classes=2)
    with pytest.raises(InvalidType, match="not volumes"):
        PolarizedHRNet.for_task(volume)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (PolarizedResNet, {"gates": "all"}, "gates='all'"),
        (PolarizedResNet, {"block": "dense"}, "block='dense'"),
        (PolarizedResNet, {"depths": ()}, "depths"),
        (PolarizedResNet, {"stem_stride": 3}, "stem_stride=3"),
        (PolarizedHRNet, {"enlarge": "cubic"}, "enlarge='cubic'"),
        (PolarizedHRNet, {"modules": ()}, "modules"),
        (PolarizedHRNet, {"stem_blocks": 0}, "stem_blocks=0"),
    ],
)
def test_illegal_networks(model: type, options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        model(**options)
