"""Claims of "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection" (2403.19888)."""

from __future__ import annotations

import math
from typing import cast, get_args

import torch
from torch import nn

from ..mixers.mamba import Mamba
from ..mixers.mamba_mixer import (
    CWLinear,
    GridChannelMixer,
    GridTokenMixer,
    MambaMixer,
    SelectiveChannelMixer,
    SelectiveTokenMixer,
)
from ..mixers.weighted_average import MambaMixerBlock, WeightedAverage
from ..models.vision.mamba_mixer import Stage, ViM2
from ..models.vision.table import count
from . import Measurement, claim
from ._mamba_mixer_forms import Chain, cross_scan_written_out, leave_linear_layers, noisy, small_vim2, two_layers
from ._processor import cpu_seconds, exponent


@claim(
    "mamba_mixer",
    kind="exact",
    says="Weighted averaging of all earlier outputs costs Lyr (2 Lyr + 3) scalars for Lyr layers.",
)
def averages_are_few_scalars() -> Measurement:
    """1 to 12 layers. Seen failing (all 12) with the layer's own token mixer left out of theta."""
    wrong = 0
    for layers in range(1, 13):
        found = sum(p.numel() for p in WeightedAverage(layers).parameters())
        dual = MambaMixer(4, seq_len=4, layers=layers, d_state=1)
        plain = MambaMixer(4, seq_len=4, layers=layers, d_state=1, averaging=False)
        extra = sum(p.numel() for p in dual.parameters()) - sum(p.numel() for p in plain.parameters())
        wrong += {found, extra} != {layers * (2 * layers + 3)}
    return Measurement.at_most(wrong, 0, "numbers of layers with another count; none allowed")


@claim(
    "mamba_mixer",
    kind="exact",
    says="The averages contain the plain architecture: with one-hot coefficients the layers are the chain of their "
    "mixers, to the bit.",
)
def one_hot_averages_are_the_chain() -> Measurement:
    """1, 2 and 5 layers, outputs and input gradients. Seen failing (16) with the rows of beta one off."""
    torch.manual_seed(0)
    worst = 0.0
    for layers in (1, 2, 5):
        mixer = MambaMixer(12, seq_len=9, layers=layers)
        coefficients = mixer.stack.average
        assert coefficients is not None
        kept = {name: value.clone() for name, value in coefficients.state_dict().items()}
        noisy(mixer)
        coefficients.load_state_dict(kept)
        x = torch.randn(3, 9, 12, requires_grad=True)
        pairs = []
        for run in (mixer, Chain(mixer.stack)):
            y = run(x)
            pairs.append((y, *torch.autograd.grad(y.sin().sum(), x)))
        worst = max(worst, *(float((a - b).detach().abs().max()) for a, b in zip(*pairs, strict=True)))
    return Measurement.at_most(worst, 0.0, "largest difference between averages and chain; none allowed")


@claim(
    "mamba_mixer",
    kind="exact",
    says="The selective token mixer in one direction is the Mamba block: the same weights give the same bits.",
)
def one_direction_is_mamba() -> Measurement:
    """Sequence, prefill and steps. Seen failing (1.1) with the gate read from the stream."""
    torch.manual_seed(0)
    mamba, mixer = Mamba(20), SelectiveTokenMixer(20, causal=True)
    noisy(mamba)
    core = {k: v for k, v in mamba.state_dict().items() if not k.startswith(("in_proj", "out_proj"))}
    mixer.block.first.load_state_dict(core)
    mixer.block.in_proj.load_state_dict(mamba.in_proj.state_dict())
    mixer.block.out_proj.load_state_dict(mamba.out_proj.state_dict())
    x, found = torch.randn(3, 45, 20), []
    with torch.no_grad():
        for one in (mamba, mixer):
            y, state = one.prefill(x[:, :30], one.init_state(3))
            last, state = one.step(x[:, 30], state)
            found.append((one(x), y, last, state.ssm, state.conv))
    worst = torch.stack([(a - b).abs().max() for a, b in zip(*found, strict=True)]).max()
    return Measurement.at_most(worst, 0.0, "largest difference; none allowed")


@claim(
    "mamba_mixer",
    kind="exact",
    says="The channel mixer has no preferred direction: reversing the channels and swapping the two scans reverses the "
    "output, f(flip(x)) = flip(f(x)).",
)
def channel_flip_is_equivariant() -> Measurement:
    """Odd and even numbers of channels, float64. Seen failing (1.2) with the backward scan's output not flipped."""
    torch.manual_seed(0)
    worst = torch.zeros((), dtype=torch.float64)
    for channels in (1, 6, 13):
        mixer = SelectiveChannelMixer(channels, seq_len=8).double()
        noisy(mixer)
        x = torch.randn(2, 8, channels, dtype=torch.float64)
        y = mixer(x)
        swapped = SelectiveChannelMixer(channels, seq_len=8).double()
        exchange = {"branches.0.": "branches.1.", "branches.1.": "branches.0."}
        swapped.load_state_dict(
            {
                next((k.replace(a, b) for a, b in exchange.items() if a in k), k): v
                for k, v in mixer.state_dict().items()
            }
        )
        worst = torch.maximum(worst, (swapped(x.flip(2)) - y.flip(2)).detach().abs().max() / y.detach().abs().max())
    return Measurement.at_most(worst, 1e-12, "largest relative difference; at most")


@claim(
    "mamba_mixer",
    kind="exact",
    says="The channel mixer is not causal: every channel of every token that comes out depends on every channel and "
    "every token that goes in.",
)
def channels_see_all_channels() -> Measurement:
    """Derivatives of outputs by inputs, 7 tokens of 6 channels. Seen failing (0.58) with the backward scan left out."""
    torch.manual_seed(0)
    mixer = SelectiveChannelMixer(6, seq_len=7).double()
    noisy(mixer, 0.3)
    x = torch.randn(1, 7, 6, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(mixer, x)
    return Measurement.at_least((matrix != 0).double().mean(), 1.0, "share of derivatives that are not zero; at least")


@claim(
    "mamba_mixer",
    kind="scaling",
    timed=True,
    says="Selection along the tokens is linear in their number: from 1,024 to 16,384 tokens the time of the token "
    "mixer grows with an exponent of at most 1.15.",
)
def time_is_linear_in_tokens() -> Measurement:
    """Both directions, width 16. Seen failing (1.8) with a matrix of all pairs of tokens in front."""
    with torch.no_grad():
        mixer, lengths = SelectiveTokenMixer(16), (1024, 16_384)
        x = torch.randn(1, lengths[1], 16)
        short, long = (cpu_seconds(lambda n=n: mixer(x[:, :n]), repeats=5) for n in lengths)
    grows = exponent((short, long), lengths)
    return Measurement.at_most(grows, 1.15, f"exponent of the time ({short:.4f} s, {long:.4f} s); at most")


@claim(
    "mamba_mixer",
    kind="scaling",
    timed=True,
    says="Selection along the channels is linear in their number: from 512 to 8,192 channels the time of the channel "
    "mixer grows with an exponent of at most 1.2.",
)
def time_is_linear_in_channels() -> Measurement:
    """Both directions, 16 tokens. Seen failing (1.8) with a matrix of all pairs of channels in front."""
    with torch.no_grad():
        sizes = (512, 8192)
        times = []
        for channels in sizes:
            mixer, x = SelectiveChannelMixer(channels, seq_len=16), torch.randn(1, 16, channels)
            times.append(cpu_seconds(lambda m=mixer, x=x: m(x), repeats=5))
    grows = exponent((times[0], times[1]), sizes)
    return Measurement.at_most(grows, 1.2, f"exponent of the time ({times[0]:.4f} s, {times[1]:.4f} s); at most")


@claim(
    "mamba_mixer",
    kind="scaling",
    timed=True,
    says="Averaging is free: in four layers on 1,024 tokens of width 128 the weighted averages take at most 1 % of the "
    "time.",
)
def averages_take_no_time() -> Measurement:
    """Processor time of the averages alone over that of all. Seen failing (0.06) with every sum made ten times.

    On a few hundred tokens the native scans are so quick that the calls themselves count, whatever they compute.
    """
    with torch.no_grad():
        mixer, x = MambaMixer(128, seq_len=1024, layers=4), torch.randn(1, 1024, 128)
        average, outputs = mixer.stack.average, [torch.randn_like(x) for _ in range(5)]
        assert average is not None

        def averages() -> None:
            for layer in range(1, 5):
                average.for_tokens(layer, outputs[:layer], outputs[:layer])
                average.for_channels(layer, outputs[: layer + 1], outputs[:layer])

        share = cpu_seconds(averages, repeats=20) / cpu_seconds(lambda: mixer(x), repeats=5)
    return Measurement.at_most(share, 0.01, "share of the forward pass's processor time; at most")


@claim(
    "mamba_mixer",
    kind="exact",
    says="ViM2 averages within its stages: with 2, 2, 6, 2 and 2, 2, 18, 2 layers the coefficients are 14, 14, 90, 14 "
    "and 14, 14, 702, 14.",
)
def stages_average_apart() -> Measurement:
    """Seen failing (2) with averages over the layers with a channel mixer alone."""
    wrong = 0
    for name, expected in (("vim2_tiny", [14, 14, 90, 14]), ("vim2_small", [14, 14, 702, 14])):
        with torch.device("meta"):
            model = ViM2(**ViM2.configurations[name])
        found = [
            sum(p.numel() for name, p in stage.named_parameters() if name.startswith("stack.average."))
            for stage in model.stages
        ]
        wrong += found != expected
    return Measurement.at_most(wrong, 0, "sizes with other numbers; none allowed")


@claim(
    "mamba_mixer",
    kind="exact",
    says="With one-hot averages ViM2 is the plain chain of its mixers, to the bit, in its maps and in the gradient of "
    "the image.",
)
def one_hot_images_are_the_chain() -> Measurement:
    """With residuals inside the layers and without. Seen failing (37) with the rows of beta rolled by one."""
    worst = 0.0
    for residual in (False, True):
        model = small_vim2(residual=residual)
        image, found = torch.randn(2, 2, 18, 13, dtype=torch.float64, requires_grad=True), []
        chain, x = [], model.stem(image)
        for stage in model.stages:
            assert isinstance(stage, Stage)
            x = x if stage.downsample is None else stage.downsample(x)
            for block in stage.stack.blocks:
                assert isinstance(block, MambaMixerBlock)
                x = block.token(block.token_norm(x)) + (x if residual else 0)
                if block.channel is not None and block.channel_norm is not None:
                    x = block.channel(block.channel_norm(x)) + (x if residual else 0)
            chain.append(x.movedim(-1, 1))
        for maps in (model.pyramid(image), chain):
            loss = sum((m.sin().sum() for m in maps), image.new_zeros(()))
            found.append((*maps, *torch.autograd.grad(loss, image)))
        worst = max(worst, *(float((a - b).detach().abs().max()) for a, b in zip(*found, strict=True)))
    return Measurement.at_most(worst, 0.0, "largest difference between averages and chain; none allowed")


@claim(
    "mamba_mixer",
    kind="exact",
    says="On a map of one row, with a convolution that looks back only, the image's token mixer in one direction is "
    "the Mamba block.",
)
def one_row_is_mamba() -> Measurement:
    """float64. Seen failing (2.5) with the gate read from the stream."""
    torch.manual_seed(0)
    mamba, mixer = Mamba(20, d_conv=2), GridTokenMixer(20, scans=("rows",))
    noisy(mamba)
    given = {k: v for k, v in mamba.state_dict().items() if not k.startswith("conv1d")}
    given = {k if k.startswith(("in_proj", "out_proj")) else f"branches.0.{k}": v for k, v in given.items()}
    filters = torch.zeros_like(mixer.conv.weight)
    filters[:, :, 1, :2] = mamba.conv1d.weight.detach()
    assert mamba.conv1d.bias is not None
    mixer.load_state_dict({**given, "conv.weight": filters, "conv.bias": mamba.conv1d.bias})
    x = torch.randn(3, 45, 20, dtype=torch.float64)
    with torch.no_grad():
        expected, found = mamba.double()(x), mixer.double()(x.unsqueeze(1)).squeeze(1)
    return Measurement.at_most((found - expected).abs().max() / expected.abs().max(), 1e-12, "relative difference")


@claim(
    "mamba_mixer",
    kind="exact",
    says="On maps too the channel mixer has no preferred direction, in all three readings of its linear layers: "
    "f(flip(x)) = flip(f(x)) with the scans swapped and, if linear layers act on the channels, their weights flipped.",
)
def channel_flip_is_equivariant_on_maps() -> Measurement:
    """float64. Seen failing (1.3) with the backward scan's gate not flipped."""
    torch.manual_seed(0)
    worst = torch.zeros((), dtype=torch.float64)
    for reading in get_args(CWLinear):
        mixer, swapped = (GridChannelMixer(7, cw_linear=reading, grid=(3, 2)).double() for _ in range(2))
        noisy(mixer)
        exchange = {"branches.0.": "branches.1.", "branches.1.": "branches.0."}
        swapped.load_state_dict(
            {
                next((k.replace(a, b) for a, b in exchange.items() if a in k), k): v
                for k, v in mixer.state_dict().items()
            }
        )
        if reading == "channels":
            enter, leave = swapped.block.in_proj.weight.data, swapped.block.out_proj.weight.data
            enter.copy_(enter.unflatten(0, (2, -1)).flip(1, 2).flatten(0, 1))
            leave.copy_(leave.flip(0, 1))
        x = torch.randn(2, 3, 2, 7, dtype=torch.float64)
        y = mixer(x).detach()
        worst = torch.maximum(worst, (swapped(x.flip(3)).detach() - y.flip(3)).abs().max() / y.abs().max())
    return Measurement.at_most(worst, 1e-12, "largest relative difference; at most")


@claim(
    "mamba_mixer",
    kind="exact",
    says="Without channel mixers and with one-hot averages ViM2 is VMamba: x + SS2D(LayerNorm(x)), layer after layer.",
)
def vmamba_is_a_special_case() -> Measurement:
    """SS2D written out with a loop over places, float64. Seen failing (9e-4) with columns and reversed rows
    exchanged."""
    model = small_vim2(channel_mixer="none", residual=True)
    image = torch.randn(2, 2, 12, 9, dtype=torch.float64)
    worst = 0.0
    with torch.no_grad():
        x = model.stem(image)
        for stage, found in zip(model.stages, model.pyramid(image), strict=True):
            assert isinstance(stage, Stage)
            x = x if stage.downsample is None else stage.downsample(x)
            for block in stage.stack.blocks:
                assert isinstance(block, MambaMixerBlock)
                x = x + cross_scan_written_out(cast(GridTokenMixer, block.token), block.token_norm(x))
            worst = max(worst, float((found.movedim(1, -1) - x).abs().max() / x.abs().max()))
    return Measurement.at_most(worst, 1e-12, "largest relative difference of a map; at most")


@claim(
    "mamba_mixer",
    kind="exact",
    says="Without scans and convolutions the two mixers are those of MLP-Mixer: one MLP over the channels of each "
    "place, one over the places of each channel.",
)
def mlp_mixer_is_a_special_case() -> Measurement:
    """Filters that pass their middle, C = 0, a gate of 1; SiLU inside. float64. Seen failing (3.3) with D left at
    1 in every scan."""
    torch.manual_seed(0)
    height, width, dim = 3, 4, 6
    tokens = GridTokenMixer(dim, bias=True).double()
    channels = GridChannelMixer(dim, cw_linear="all_tokens", grid=(height, width), expand=2, bias=True).double()
    block = cast(nn.Module, channels.block)
    x, worst = torch.randn(2, height, width, dim, dtype=torch.float64), 0.0
    with torch.no_grad():
        leave_linear_layers(tokens, block)
        across = two_layers(block, x.flatten(1, 2).transpose(1, 2)).transpose(1, 2).view_as(x)
        for found, expected in ((tokens(x), two_layers(tokens, x)), (channels(x), across)):
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return Measurement.at_most(worst, 1e-12, "largest relative difference; at most")


@claim(
    "mamba_mixer",
    kind="exact",
    says="ViM2 has about the 20, 43 and 74 million parameters that the paper prints, with linear layers of the channel "
    "mixers that act on the channels.",
)
def image_models_have_the_printed_sizes() -> Measurement:
    """The paper leaves open what those layers act on. Seen failing (0.29) with inner channels twice as many."""
    printed = {"tiny": 20, "small": 43, "base": 74}
    found = {name: count(f"vim2_{name}", 32).parameters / 1e6 for name in printed}
    apart = {name: found[name] / printed[name] - 1 for name in printed}
    told = ", ".join(f"{name} {found[name]:.1f} M, {100 * apart[name]:+.1f} %" for name in printed)
    return Measurement.at_most(max(map(abs, apart.values())), 0.15, f"largest relative difference ({told}); at most")


@claim(
    "mamba_mixer",
    kind="scaling",
    timed=True,
    says="ViM2 is linear in pixels: from 128 x 128 to 512 x 512 its time grows with an exponent of at most 1.15.",
)
def time_is_linear_in_pixels() -> Measurement:
    """Two stages of widths 16 and 32. Seen failing (1.6) with a matrix of all pairs of places in front."""
    torch.manual_seed(0)
    model, sides, times = ViM2(3, 2, depths=(2, 2), dims=(16, 32)).eval(), (128, 512), []
    with torch.no_grad():
        for side in sides:
            x = torch.randn(1, 3, side, side)
            times.append(cpu_seconds(lambda x=x: model(x), repeats=3))
    grows = exponent((times[0], times[1]), (sides[0] ** 2, sides[1] ** 2))
    return Measurement.at_most(grows, 1.15, f"exponent of the time ({times[0]:.4f} s, {times[1]:.4f} s); at most")


@claim(
    "mamba_mixer",
    kind="needs-pretrained",
    says="ViM2, MambaMixer for images, reaches 82.7 / 83.7 / 83.9 % on ImageNet in its three sizes, 49.9 and 51.4 mIoU "
    "on ADE20K and 47.1 and 48.5 box AP on COCO in the first two.",
)
def images_as_published() -> Measurement:
    """Nothing is measured, so it cannot pass."""
    need = "not measured: it needs weights of ViM2, of which the authors released none, ImageNet-1k, ADE20K and COCO"
    return Measurement(math.nan, 82.7, False, f"top-1 of the smallest size (at least); {need}.")
