"""MambaMixer: selective state spaces along the tokens and along the channels, joined by learned averages.

Behrouz, Santacatterina and Zabih, "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel
Selection", arXiv 2403.19888 (version 1), sections 3.1 to 3.3. Both mixers are Mamba blocks with several reading orders
S and one gate (:mod:`.selective_block`)::

    token mixer:    x (L, D)      [u | z] = x W_in      y = (sum over S of S^-1( S6(silu(conv(S u))) ) * silu(z)) W_out
    channel mixer:  x^T (D, L)    the same, forward and backward along the channels

The token mixer reads the tokens forward, or in both directions. The channel mixer's sequence are the channels and its
features the tokens, so that the length is fixed when it is built. How layers are joined is in :mod:`.weighted_average`.

No code of the authors is public. What the paper leaves open is chosen here: B, C and the step sizes are read from the
stream behind the convolution, as in Mamba, and each order has a convolution of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from ...errors import InvalidValue
from ...measure.cost import Cost
from ...registry import register
from ...spec import Grid, MixerSpec, Order
from ..base import Mixer, grid_size
from ..layout import TokenLayout
from ..selective_block import SelectiveBlock
from ..ssm import SSMState, check_positive
from ..weighted_average import MambaMixerBlock, MambaMixerStack


@register("mixer", "selective_token_mixer", system="mamba_mixer")
class SelectiveTokenMixer(Mixer):
    """Selective token mixer of MambaMixer: S6 along the tokens, in one direction or several, under one gate.

    With ``causal=True`` it is the Mamba block, with Mamba's weights and its stream.

    Args:
        dim: channels of a token.
        causal: one forward scan; False: in both directions, unless ``scans`` says else.
        scans: orders in which the tokens are read, each with a convolution and an S6 of its own; names of
            :data:`~foveate.mixers.selective_block.SCANS`. None: forward if causal, else forward and backward.
        d_state: numbers N kept per inner channel.
        d_conv: width of the convolutions.
        expand: inner channels per channel of the token.
        dt_rank: rank of the step sizes' projections; "auto": dim / 16, rounded up.
        conv_bias: the convolutions have biases.
        bias: the input and output projections have biases.

    Raises:
        UnknownName: a scan that does not exist.
        InvalidValue: ``scans`` that are not forward alone with ``causal=True``, that repeat a name or are none at all;
            an option that is not a positive whole number.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        streaming="exact",
        layout=True,
        segments=True,
        onnx=True,
        export_note="its scan is unrolled: the graph grows with the length",
    )
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "state-spaces/mamba": {
            r"(in_proj|out_proj)\.(weight|bias)": r"block.\1.\2",
            r"(conv1d|x_proj|dt_proj)\.(weight|bias)": r"block.branches.0.\1.\2",
            r"(A_log|D)": r"block.branches.0.\1",
        }
    }

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        scans: tuple[str, ...] | None = None,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        usual = ("forward",) if causal else ("forward", "backward")
        scans = usual if scans is None else tuple(scans)
        if causal and scans != usual:
            raise InvalidValue(f"scans={scans!r} is not possible with causal=True: legal is {usual!r}.")
        inner: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        self.block = SelectiveBlock(dim, scans, **inner, dt_rank=dt_rank, conv_bias=conv_bias, bias=bias)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, length, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        return self.block(x, mask, None if layout is None else layout.segments)[0]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SSMState:
        """Zeros: the convolution's inputs in ``dtype`` (default: the weights'), the scan's state in float32."""
        if not self.causal:
            raise self._no_streaming()
        return self.block.first.core_state(batch_size, device, dtype)

    def prefill(self, x: Tensor, state: SSMState, mask: Tensor | None = None) -> tuple[Tensor, SSMState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is."""
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        return self.block(x, mask, state=state)

    def step(self, x_t: Tensor, state: SSMState) -> tuple[Tensor, SSMState]:
        """Read one token ``(batch, dim)``.

        Raises:
            InvalidType: the mixer is not causal.
            InvalidValue: anything but one token per sample.
        """
        if not self.causal:
            raise self._no_streaming()
        self.check_step(x_t, state)
        return self.block.step(x_t, state)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolutions and the products with C; the recurrences are elementwise."""
        core = self.block.first
        return self.block.cost(batch, grid[0]) + Cost(
            parameters=sum(p.numel() for p in self.parameters()),
            state_bytes=4 * batch * core.d_inner * (core.d_conv + core.d_state) if self.causal else 0,
        )


@register("mixer", "selective_channel_mixer", system="mamba_mixer")
class SelectiveChannelMixer(Mixer):
    """Selective channel mixer of MambaMixer: S6 along the channels, whose features are the tokens.

    The input is transposed: its channels become a sequence of ``dim`` places, its tokens their features, so that the
    weights belong to one number of tokens, and every output depends on every token. Masked tokens are features of zero.

    Args:
        dim: channels of a token: the length of the sequence that is scanned.
        causal: must be False.
        seq_len: number of tokens; networks set it by their grid.
        groups: cut the tokens into so many equal groups, each mixed for itself by the same weights; it must divide
            ``seq_len``. 1: all tokens are features together, as published.
        bidirectional: scan the channels backward too, under the same gate.
        d_state: numbers N kept per inner feature.
        d_conv: width of the convolution over channels.
        expand: inner features per feature.

    Raises:
        InvalidValue: ``causal=True``, ``groups`` that do not divide ``seq_len``, an option that is not a positive whole
            number.
    """

    spec = MixerSpec(
        ranks=(1,),
        grid=Grid(fixed=(16,)),
        order=Order(flops=2.0, memory=1.0),
        export_note="its length is fixed when it is built, and its unrolled scans are slow to convert",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        seq_len: int = 16,
        groups: int = 1,
        bidirectional: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
    ) -> None:
        super().__init__(dim, causal=causal)
        check_positive(seq_len=seq_len, groups=groups)
        if seq_len % groups:
            raise InvalidValue(f"groups={groups!r} is not possible: it must divide seq_len={seq_len}.")
        self.spec = replace(self.spec, grid=Grid(fixed=(seq_len,)))
        self.groups = groups
        scans = ("forward", "backward") if bidirectional else ("forward",)
        self.block = SelectiveBlock(seq_len // groups, scans, d_state=d_state, d_conv=d_conv, expand=expand)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The features are the tokens: ``seq_len`` is their number."""
        return {"seq_len": grid_size(grid)}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, seq_len, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
        turned = x.unflatten(1, (self.groups, -1)).flatten(0, 1).transpose(1, 2)
        y = self.block(turned)[0].transpose(1, 2).unflatten(0, (-1, self.groups)).flatten(1, 2)
        return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolutions and the products with C; the recurrences are elementwise."""
        parameters = sum(p.numel() for p in self.parameters())
        return self.block.cost(batch * self.groups, self.dim) + Cost(parameters=parameters)


@register("mixer", "mamba_mixer")
class MambaMixer(Mixer):
    """MambaMixer: layers of a selective token mixer and a selective channel mixer, joined by learned averages.

    The channel mixers' features are the tokens, so that the weights belong to one number of tokens.

    Args:
        dim: channels of a token.
        causal: must be False; the channel mixer sees every token.
        seq_len: number of tokens; networks set it by their grid.
        groups: see :class:`SelectiveChannelMixer`.
        layers: pairs of mixers inside this one.
        averaging: every mixer reads learned sums of all earlier outputs; False: the output of the mixer before it.
        residual: add its input to every mixer's output. The paper does not say.
        d_state, d_conv, expand: of both mixers, see :class:`SelectiveTokenMixer`.

    Raises:
        InvalidValue: ``causal=True``, ``groups`` that do not divide ``seq_len``, an option that is not a positive whole
            number.
    """

    spec = MixerSpec(
        ranks=(1,),
        grid=Grid(fixed=(16,)),
        order=Order(flops=2.0, memory=1.0),
        export_note="its length is fixed when it is built, and its unrolled scans are slow to convert",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        seq_len: int = 16,
        groups: int = 1,
        layers: int = 1,
        averaging: bool = True,
        residual: bool = False,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
    ) -> None:
        super().__init__(dim, causal=causal)
        check_positive(layers=layers)
        inner: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        pairs = [
            (SelectiveTokenMixer(dim, **inner), SelectiveChannelMixer(dim, seq_len=seq_len, groups=groups, **inner))
            for _ in range(layers)
        ]
        self.spec = pairs[0][1].spec
        blocks = [MambaMixerBlock(dim, *pair, residual=residual, dropout=0.0) for pair in pairs]
        self.stack = MambaMixerStack(blocks, averaging=averaging)

    @classmethod
    def options_for(cls, grid: tuple[int, ...]) -> dict[str, Any]:
        """The channel mixer's features are the tokens: ``seq_len`` is their number."""
        return {"seq_len": grid_size(grid)}

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, seq_len, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        return self.stack(x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0), mask)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts what the mixers count; norms and averages are elementwise."""
        total, tokens = Cost(), batch * grid_size(grid)
        for module in self.stack.blocks:
            block = cast(MambaMixerBlock, module)
            total += cast(Mixer, block.token).cost(grid, batch) + cast(Mixer, block.channel).cost(grid, batch)
            # Kept by norms and averages: what each norm reads and its two statistics, and every output but the last.
            kept = 4 if self.stack.average is not None else 2
            total += Cost(activation_bytes=4 * tokens * (kept * self.dim + 4))
        return replace(total, parameters=sum(p.numel() for p in self.parameters()))
