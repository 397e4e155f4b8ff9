"""Controls leave nothing behind, compose or refuse, and count on the attachment."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from foveate.control import Adapter, Attachment, Control, Editor, attachments
from foveate.errors import InvalidType, InvalidValue, UnknownName


class Plain:
    """An attention processor: a plain object, as diffusers has them."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Attention(nn.Module):
    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.processor = Plain()

    def forward(self, x: torch.Tensor, *, gain: float = 1.0) -> torch.Tensor:
        return self.processor(self.proj(x)) * self.scale * gain


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(3))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x, gain=2.0)
        return self.norm(x)


class Pipeline:
    def __init__(self, network: nn.Module) -> None:
        self.unet = network


class Everything(Control):
    """Uses every way of changing a model."""

    accepts = ("Network",)

    def install(self, attachment: Attachment) -> None:
        attachment.replace("blocks.0.proj", nn.Identity())
        attachment.set("blocks.1", "processor", lambda x: x * attachment.step)
        attachment.set("blocks.1", "scale", 3.0)
        attachment.overwrite("blocks.2.proj.weight", torch.full((4, 4), torch.nan))
        attachment.overwrite("norm.running_mean", torch.ones(4))
        attachment.hook("blocks.2", lambda m, args, kwargs: (args, {"gain": 0.5}), before=True)
        attachment.hook("blocks.2", lambda m, args, kwargs, y: torch.zeros_like(y))
        attachment.freeze()


class Listen(Control):
    accepts = ("Module",)

    def __init__(self, path: str = "blocks.1") -> None:
        self.path = path

    def install(self, attachment: Attachment) -> None:
        attachment.hook(self.path, lambda m, args, kwargs, y: y + attachment.count("layer"))


class Replace(Control):
    accepts = ("Network",)

    def __init__(self, path: str) -> None:
        self.path = path

    def install(self, attachment: Attachment) -> None:
        attachment.replace(self.path, nn.Identity())


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def fingerprint(network: Network) -> dict[str, object]:
    """Everything a control could leave behind: bits, objects, flags, hooks and instance attributes."""
    found: dict[str, object] = {k: v.clone() for k, v in network.state_dict().items()}
    for name, module in network.named_modules():
        found[f"{name} id"] = id(module)
        found[f"{name} attributes"] = {k: id(v) for k, v in vars(module).items()}
        found[f"{name} hooks"] = (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._forward_hooks_with_kwargs),
            len(module._forward_pre_hooks_with_kwargs),
        )
    for name, parameter in network.named_parameters():
        found[f"{name} flag"] = (id(parameter), parameter.requires_grad)
    return found


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k]  # type: ignore[arg-type]
        for k, v in a.items()
    )


def test_everything_is_undone_bit_for_bit(network: Network) -> None:
    network.blocks[0].proj.weight.requires_grad_(False)
    x = torch.randn(5, 4)
    before, y = fingerprint(network), network(x)
    attachment = Everything().attach(network)
    assert not torch.equal(network(x), y)
    assert not same(fingerprint(network), before)
    assert len(attachment.changes) == 8
    assert attachment.changes[0] == "blocks.0.proj: Linear replaced by Identity"
    attachment.remove()
    assert same(fingerprint(network), before)
    assert torch.equal(network(x), y)
    assert not attachment.active
    assert repr(attachment) == "<Everything on Network: removed>"
    attachment.remove()  # a second time does nothing


def test_undone_after_an_exception_inside_the_block(network: Network) -> None:
    before = fingerprint(network)
    with pytest.raises(ZeroDivisionError), Everything().attached(network):
        raise ZeroDivisionError
    assert same(fingerprint(network), before)
    assert attachments(network) == []


def test_a_failed_attach_leaves_nothing_behind(network: Network) -> None:
    class Half(Control):
        accepts = ("Network",)

        def install(self, attachment: Attachment) -> None:
            attachment.replace("blocks.0.proj", nn.Identity())
            attachment.hook("blocks.7", lambda *a: None)

    before = fingerprint(network)
    with pytest.raises(UnknownName, match=r"unknown part of Network 'blocks.7': did you mean 'blocks\.\d'"):
        Half().attach(network)
    assert same(fingerprint(network), before)
    Everything().attach(network).remove()  # and no claim stayed


def test_finds_the_network_of_a_pipeline_and_knows_its_kind(network: Network) -> None:
    with Everything().attached(Pipeline(network)) as attachment:
        assert attachment.model is network
    with pytest.raises(InvalidType, match="Everything does not know Linear: it attaches to Network"):
        Everything().attach(nn.Linear(2, 2))
    with pytest.raises(InvalidType, match="Everything attaches to a network or to a pipeline that holds one; str"):
        Everything().attach("a model")

    class Bigger(Network):
        pass

    Everything().attach(Bigger()).remove()  # a subclass is known too


def test_counters_live_on_the_attachment(network: Network) -> None:
    x, seen = torch.randn(2, 4), []

    class Watch(Control):
        accepts = ("Network",)

        def install(self, attachment: Attachment) -> None:
            for i in range(3):
                attachment.hook(f"blocks.{i}", lambda *a: seen.append((attachment.step, attachment.count("layer"))))

    other = Network().eval()
    watch = Watch()
    with watch.attached(network) as attachment, watch.attached(other) as second:
        attachment.calls_per_step = 2
        for _ in range(4):
            network(x)
        assert seen == [(step, layer) for step in (0, 0, 1, 1) for layer in range(3)]
        assert (attachment.calls, second.calls) == (4, 0)
        attachment.step = 7
        network(x)
        assert seen[-1] == (7, 2)
        attachment.reset()
        network(x)
        assert seen[-1] == (0, 2)


def test_the_store_lasts_one_call(network: Network) -> None:
    with Listen().attached(network) as attachment:
        network(torch.randn(2, 4))
        attachment.store["map"] = 1
        network(torch.randn(2, 4))
        assert attachment.store == {}


def test_listeners_compose_and_leave_in_any_order(network: Network) -> None:
    before, x = fingerprint(network), torch.randn(2, 4)
    first, second = Listen().attach(network), Listen().attach(network)
    assert attachments(network) == [first, second]
    network(x)
    first.remove()
    network(x)
    second.remove()
    assert same(fingerprint(network), before)


def test_disjoint_replacements_compose_and_leave_in_any_order(network: Network) -> None:
    before = fingerprint(network)
    first, second = Replace("blocks.0").attach(network), Replace("blocks.1.proj").attach(network)
    first.remove()
    second.remove()
    assert same(fingerprint(network), before)


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (Replace("blocks.1"), Replace("blocks.1"), "blocks.1"),
        (Replace("blocks.1"), Replace("blocks.1.proj"), None),  # no longer there
        (Replace("blocks.1.proj"), Replace("blocks.1"), "blocks.1"),
        (Replace("blocks.1"), Listen("blocks.1"), "blocks.1"),
        (Listen("blocks.1.proj"), Replace("blocks.1"), "blocks.1"),
        (Everything(), Replace("blocks.2.proj"), "blocks.2.proj"),
    ],
)
def test_overlapping_changes_are_refused(network: Network, first: Control, second: Control, path: str | None) -> None:
    before = fingerprint(network)
    attachment = first.attach(network)
    error, message = (InvalidValue, f"{type(second).__name__} cannot change {path}: {type(first).__name__} already")
    if path is None:
        error, message = UnknownName, "unknown part"
    with pytest.raises(error, match=message):
        second.attach(network)
    attachment.remove()
    assert same(fingerprint(network), before)
    second.attach(network).remove()
    assert same(fingerprint(network), before)


def test_overlap_is_seen_from_a_sub_network_too(network: Network) -> None:
    with Replace("blocks.1.proj").attached(network), pytest.raises(InvalidValue, match="cannot change proj"):
        Listen("proj").attach(network.blocks[1])


def test_the_same_attribute_or_weight_twice_is_refused(network: Network) -> None:
    class SetScale(Control):
        accepts = ("Network",)

        def install(self, attachment: Attachment) -> None:
            attachment.set("blocks.1", "scale", 5.0)

    class Merge(Control):
        accepts = ("Network",)

        def install(self, attachment: Attachment) -> None:
            attachment.overwrite("blocks.2.proj.weight", torch.ones(4, 4))

    for control in (SetScale(), Merge()):
        with Everything().attached(network), pytest.raises(InvalidValue, match="Everything already does"):
            control.attach(network)
        control.attach(network).remove()


def test_one_control_attaches_once_to_a_model(network: Network) -> None:
    control = Listen()
    with control.attached(network), pytest.raises(InvalidValue, match="this Listen is already attached"):
        control.attach(network)


def test_refuses_what_another_method_is_for(network: Network) -> None:
    with Listen().attached(network) as attachment:
        with pytest.raises(InvalidType, match=r"blocks.0.proj is a part or a weight: use replace or overwrite"):
            attachment.set("blocks.0", "proj", None)
        with pytest.raises(InvalidValue, match="the model itself cannot be replaced"):
            attachment.replace("", nn.Identity())
        with pytest.raises(InvalidValue, match=r"norm.bias has shape \(4,\); it cannot hold \(3,\)"):
            attachment.overwrite("norm.bias", torch.zeros(3))
        with pytest.raises(UnknownName, match="unknown weight of BatchNorm1d 'biass': did you mean 'bias'"):
            attachment.overwrite("norm.biass", torch.zeros(4))
    with pytest.raises(InvalidType, match="Listen was removed: attach it again"):
        attachment.hook("norm", lambda *a: None)


def test_models_are_not_kept_alive() -> None:
    network = Network()
    Everything().attach(network).remove()
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None


class LowRank(Adapter):
    """Adds a low-rank term to every block's output."""

    accepts = ("Network",)

    def __init__(self, width: int = 4, rank: int = 1) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    @classmethod
    def for_model(cls, model_or_pipeline: Network, **options: int) -> LowRank:
        return cls(width=model_or_pipeline.norm.num_features, **options)

    def install(self, attachment: Attachment) -> None:
        for i in range(3):
            attachment.hook(f"blocks.{i}", lambda m, args, kwargs, y: y + self.up(self.down(args[0])))


def test_an_adapter_trains_alone(network: Network) -> None:
    adapter, x = LowRank.for_model(network, rank=2), torch.randn(3, 4)
    y, keys, before = network(x), list(network.state_dict()), fingerprint(network)
    with adapter.attached(network):
        assert torch.equal(network(x), y)  # it starts as the identity
        assert list(network.state_dict()) == keys
        network(x).square().sum().backward()
        assert all(p.grad is None for p in network.parameters())
        assert adapter.up.weight.grad is not None
        with torch.no_grad():
            adapter.up.weight.add_(1.0)
        assert not torch.equal(network(x), y)
    assert same(fingerprint(network), before)


def test_an_adapter_that_replaces_parts_keeps_learning(network: Network) -> None:
    class Swap(Adapter):
        accepts = ("Network",)

        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def install(self, attachment: Attachment) -> None:
            attachment.replace("blocks.0.proj", self.proj)

    adapter, before = Swap(), fingerprint(network)
    with adapter.attached(network):
        assert {n for n, p in network.named_parameters() if p.requires_grad} == {
            "blocks.0.proj.weight",
            "blocks.0.proj.bias",
        }
    assert same(fingerprint(network), before)
    assert all(p.requires_grad for p in adapter.parameters())


def test_an_adapter_is_saved_by_itself(network: Network, tmp_path: Path) -> None:
    adapter = LowRank(rank=3)
    nn.init.normal_(adapter.up.weight)
    with adapter.attached(network):
        adapter.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".md") == ["config.json", "model.safetensors"]
    again = LowRank.from_pretrained(tmp_path)
    assert torch.equal(again.up.weight, adapter.up.weight)
    with pytest.raises(InvalidType, match="LowRank is not called: attach it to a model"):
        adapter(torch.zeros(1))
    with pytest.raises(InvalidType, match="cannot read its sizes from a model"):
        Adapter.for_model.__func__(type("Bare", (Adapter,), {}), network)  # type: ignore[attr-defined]


def test_contracts_are_abstract() -> None:
    with pytest.raises(TypeError, match="install"):
        Control()  # type: ignore[abstract]
    with pytest.raises(TypeError, match="edit"):
        Editor()  # type: ignore[abstract]
