"""SeerAttention on a decoder of transformers: trained gates that skip blocks while a prompt is read (arXiv 2410.13276).

Beside each layer's attention stands a gate (:class:`~foveate.mixers.seer_attention.gate.AttnGate`) on queries and keys
before their rotary embedding. :func:`distill` teaches the gates the model's own maps, pooled by blocks, and leaves the
model as it is; then prompts are read by the blocks that the gates choose, and single tokens read everything, as in the
paper::

    gates = SeerAttention.for_model(model, block_size=64)
    distill(gates, model, batches, steps=500)
    gates.save_pretrained("gates")
    with gates.attached(model):
        model.generate(**prompt)

How much is skipped is set at any time: :meth:`SeerAttention.set_selection`, :func:`calibrate`. The gates of the
authors' release load with :func:`foveate.load_official`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue, invalid
from ..mixers.base import aux_losses
from ..mixers.seer_attention.gate import AttnGate, BlockGrid, Select, Selection
from ..ops.block_gate import Pool, Rope, gate_kl_loss
from ..ops.block_sparse_attention import block_sparse_attention
from ..ops.pooled_attention_target import normalised
from ..ops.softmax_attention import softmax_attention
from ..registry import register
from .attachment import Attachment
from .base import Adapter
from .decoder_call import DecoderCall, key_heads
from .decoders import DecoderAttention, attention_paths

# Rotary embeddings of a gate's width, made of those of a head's.
_narrow: WeakKeyDictionary[nn.Module, dict[int, nn.Module]] = WeakKeyDictionary()


@register("control", "seer_attention")
class SeerAttention(DecoderAttention, Adapter):
    """Gates that choose which blocks of its attention a decoder computes while it reads a prompt.

    In evaluation mode, which it begins in, the attention is sparse; in training mode it is the model's own, dense, and
    every gate reports ``gate_loss`` times its divergence from the pooled map (:func:`foveate.mixers.aux_losses`). With
    everything kept, answers are the model's own. A piece of a prompt behind a cache is read by blocks that count from
    the row's beginning. Padding is in no pool and never read; a sample behind padding on the left may keep other blocks
    than alone, for its blocks begin elsewhere.

    Args:
        num_layers, num_heads, num_kv_heads, head_dim: sizes of the model, see :meth:`for_model`.
        block_size: tokens of a block.
        gate_dim: width of the gates, even; None: that of a head.
        q_pool, k_pool, force_double: see :class:`~foveate.mixers.seer_attention.gate.AttnGate`.
        select, ratio, threshold, last_block_dense: see :class:`~foveate.mixers.seer_attention.gate.Selection`.
        gate_loss: factor of the loss.
        layers, heads: see :class:`~foveate.control.decoders.DecoderAttention`.

    Raises:
        InvalidValue: an option that is not legal; when attached: a model of other sizes.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "seerattention": {r"(?:.*\.)?layers\.(\d+)\.self_attn\.attn_gate\.(mask_linear_[qk]\.weight)": r"gates.\1.\2"}
    }

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int = 64,
        gate_dim: int | None = None,
        q_pool: Sequence[Pool] = ("avg",),
        k_pool: Sequence[Pool] = ("max", "min", "avg"),
        force_double: bool = False,
        select: Select = "ratio",
        ratio: float = 0.5,
        threshold: float = 2e-3,
        last_block_dense: bool = True,
        gate_loss: float = 10.0,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads)
        if not isinstance(num_layers, int) or num_layers < 1:
            raise invalid("num_layers", num_layers, "a positive whole number is needed")
        if num_heads % num_kv_heads:
            raise invalid("num_kv_heads", num_kv_heads, f"it must divide num_heads={num_heads}")
        for what, given, count in (("layers", self.layers, num_layers), ("heads", self.heads, num_heads)):
            if given is not None and given[-1] >= count:
                raise invalid(what, given, f"there are {what} 0 to {count - 1}")
        self.sizes = (num_layers, num_heads, num_kv_heads, head_dim)
        self.block_size, self.gate_loss = block_size, gate_loss
        self.selection = Selection(select, ratio, threshold, last_block_dense)
        read = num_kv_heads if self.heads is None else len(key_heads(self.heads, num_heads // num_kv_heads))
        self.gates = nn.ModuleDict()
        for layer in range(num_layers) if self.layers is None else self.layers:
            self.gates[str(layer)] = AttnGate(
                head_dim=head_dim,
                num_q_heads=num_heads if self.heads is None else len(self.heads),
                num_k_heads=read,
                block_size=block_size,
                gate_dim=head_dim if gate_dim is None else gate_dim,
                q_pool=q_pool,
                k_pool=k_pool,
                force_double=force_double,
                rope_base=None,
            )
        self.eval()

    @classmethod
    def for_model(cls, model_or_pipeline: Any, **options: Any) -> Self:
        """Gates with the sizes of this model; ``options`` are those of the constructor.

        Raises:
            InvalidType: not a decoder that this control knows.
        """
        network = cls.find_network(cls._bare(), model_or_pipeline)
        return cls(**_sizes(network), **options)

    @classmethod
    def _bare(cls) -> Self:
        """Something to ask which networks are known."""
        return cls(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2)

    def set_selection(self, **options: Any) -> Self:
        """Choose blocks by other options from now on: ``select``, ``ratio``, ``threshold``, ``last_block_dense``.

        Raises:
            InvalidType: there is no such option.
            InvalidValue: a value that is not legal.
        """
        kept = {name: getattr(self.selection, name) for name in Selection.__dataclass_fields__}
        unknown = [name for name in options if name not in kept]
        if unknown:
            raise InvalidType(f"{unknown[0]!r} is not an option of a selection: legal are {', '.join(kept)}.")
        self.selection = Selection(**{**kept, **options})
        saved: Any = self._hub_mixin_config or {}
        self._hub_mixin_config = {**saved, **options}  # what is saved begins with these
        return self

    def check(self, model: nn.Module) -> None:
        """Refuse a model of other sizes, and what the base refuses."""
        super().check(model)
        theirs = tuple(_sizes(model).values())
        if theirs != self.sizes:
            told = [f"{n} layers of {h} and {k} heads, {d} wide" for n, h, k, d in (self.sizes, theirs)]
            raise InvalidValue(f"these gates are of another model: they are for {told[0]}, and this one has {told[1]}.")

    def install(self, attachment: Attachment) -> None:
        """Put the gates beside the chosen layers."""
        super().install(attachment)
        model: Any = attachment.model
        rotary: Any = getattr(getattr(model, model.base_model_prefix, model), "rotary_emb", None)
        gate: Any = next(iter(self.gates.values()))
        if rotary is not None and gate.gate_dim != self.sizes[3]:
            config = copy.copy(rotary.config)
            config.head_dim = gate.gate_dim
            _narrow.setdefault(rotary, {})[gate.gate_dim] = type(rotary)(config).to(rotary.inv_freq.device)

    def attend(self, call: DecoderCall) -> Tensor:
        """A prompt, or a piece of one, by chosen blocks; a single token reads everything."""
        if call.q.shape[2] == 1:
            return _read_all(call)
        gate: AttnGate = self.gates[str(call.layer)]  # type: ignore[assignment]
        size, (q, k) = self.block_size, call.unrotated()
        extra, turned, asks = call.cached % size, call.q, None
        if extra:  # the open block's queries are gone: its row begins with nobody
            q, turned = (F.pad(t, (0, 0, extra, 0)) for t in (q, turned))
        rows, blocks = -(-q.shape[2] // size), -(-k.shape[2] // size)
        if extra:
            asks = torch.arange(q.shape[2], device=q.device) >= extra
            asks = asks.expand(len(q), -1) if call.mask is None else asks & call.mask[:, call.cached - extra :]
        documents, spare = None, blocks * size - k.shape[2]
        there = None if call.mask is None else F.pad(call.mask, (0, spare)).unflatten(1, (blocks, size))
        if there is not None:
            documents = torch.where(there.any(2), 0, -1)
        grid = BlockGrid.of(rows, blocks, q.device, documents)
        rope = _block_rope(call, gate.gate_dim, size, there)
        options = {"block_mask": grid.visible, "block_rope": rope, "softmax": False, "mask": call.mask, "q_mask": asks}
        rest = {"block_size": size, "mask": call.mask, "scale": call.scale}
        if self.training:
            logits = gate(q.detach().float(), k.detach().float(), **options)
            o, largest = block_sparse_attention(turned, call.k, call.v, grid.visible, return_block_max=True, **rest)
            gate.aux_losses = {"gate": self.gate_loss * gate_kl_loss(logits, normalised(largest))}
            return o[:, :, extra:]
        with torch.no_grad():
            kept = self.selection.keep(gate(q.float(), k.float(), **options), grid)
            gate.kept = kept.sum(), grid.visible.expand_as(kept).sum()
        return block_sparse_attention(turned, call.k, call.v, kept, **rest)[:, :, extra:]  # type: ignore[index]

    def density(self) -> float:
        """The share of causal blocks that was computed in the last prompt read, of all layers together.

        Raises:
            InvalidValue: none was read yet.
        """
        counts = [gate.kept for gate in self.gates.values() if gate.kept is not None]  # type: ignore[union-attr]
        if not counts:
            raise InvalidValue(f"{type(self).__name__} has read no prompt yet: attach it and call the model.")
        return float(sum(kept for kept, _ in counts) / sum(causal for _, causal in counts))  # type: ignore[arg-type]


def distill(
    gates: SeerAttention,
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    steps: int = 500,
    lr: float = 1e-3,
    warmup: int = 20,
    weight_decay: float = 0.0,
) -> list[float]:
    """Teach the gates the model's own maps, as published; the model does not learn and is left as it was.

    AdamW; the rate rises over ``warmup`` steps and falls along a cosine to zero. The first quarter of each map's rows
    does not count.

    Args:
        gates: in evaluation mode again afterwards.
        model: the decoder that they are for.
        batches: int64 ``(batch, length)``, token numbers; begun again when they end.
        steps: as published 500, of 16 samples of 32,768 or 65,536 tokens.
        lr: the highest rate.
        warmup: steps until then.
        weight_decay: of AdamW.

    Returns:
        The loss of each step, summed over layers.

    Raises:
        InvalidValue: the gates are of another model, or there are no batches.
    """
    for name, value, least in (("steps", steps, 1), ("warmup", warmup, 0)):
        if not isinstance(value, int) or value < least:
            raise invalid(name, value, f"a whole number, {least} or more, is needed")
    learning = [p for p in gates.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=weight_decay)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses, source = [], _endless(batches)
    was_training = model.training
    network: Any = gates.find_network(model)
    decoder = getattr(network, network.base_model_prefix, network)
    try:
        gates.train()
        model.eval()  # what is learned is the map without dropout
        with gates.attached(model), torch.enable_grad():
            for _ in range(steps):
                decoder(input_ids=next(source), use_cache=False)
                loss = aux_losses(gates)["gate"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
    finally:
        model.train(was_training)
        gates.eval()
        for gate in gates.gates.values():
            gate.aux_losses = {}  # type: ignore[union-attr]
    return losses


@torch.no_grad()
def calibrate(gates: SeerAttention, model: nn.Module, tokens: Tensor, sparsity: float, *, tries: int = 10) -> float:
    """Set the threshold at which this share of the causal blocks is skipped.

    Found by halving on these tokens: it depends on their number, so calibrate with as many as prompts have.

    Args:
        gates: their selection becomes "threshold".
        model: the decoder that they are for.
        tokens: int64 ``(batch, length)``.
        sparsity: above 0 and below 1; what ``last_block_dense`` keeps counts as kept.
        tries: how often the tokens are read.

    Returns:
        The share that is kept of these tokens.

    Raises:
        InvalidValue: a sparsity out of range.
    """
    if not isinstance(sparsity, int | float) or not 0 < sparsity < 1:
        raise invalid("sparsity", sparsity, "it must be above 0 and below 1")
    network: Any = gates.find_network(model)
    decoder = getattr(network, network.base_model_prefix, network)
    low, high = math.log(1e-7), 0.0
    with gates.attached(model):
        for _ in range(tries):
            middle = (low + high) / 2
            gates.set_selection(select="threshold", threshold=math.exp(middle))
            decoder(input_ids=tokens, use_cache=False)
            low, high = (middle, high) if gates.density() > 1 - sparsity else (low, middle)
        gates.set_selection(threshold=math.exp(high))  # never more than asked for
        decoder(input_ids=tokens, use_cache=False)
    return gates.density()


def _endless(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, again and again."""
    while True:
        count = 0
        for count, batch in enumerate(batches, 1):  # noqa: B007
            yield batch
        if not count:
            raise InvalidValue("batches is not possible: it has ended, and cannot be begun again; give a list.")


def _sizes(model: Any) -> dict[str, int]:
    """What gates have to know of a decoder."""
    config = model.config
    heads = config.num_attention_heads
    return {
        "num_layers": len(attention_paths(model)),
        "num_heads": heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }


def _block_rope(call: DecoderCall, width: int, size: int, there: Tensor | None) -> Rope | None:
    """The model's rotary embedding at the first real token of each block; None: the model has none."""
    rotary: Any = call.rotary
    if rotary is None:
        return None
    first, keys = call.query_positions, call.k.shape[2]
    if there is None:
        positions = first[:, :1] - call.cached + torch.arange(0, keys, size, device=first.device)
    else:  # real tokens stand one after another
        assert call.mask is not None
        count = call.mask.cumsum(1)
        asked = call.mask[:, call.cached :].int().argmax(1, keepdim=True)
        start = first.expand(len(count), -1).gather(1, asked) - count.gather(1, asked + call.cached)
        places = F.pad(count + start, (0, there.shape[1] * size - keys)).unflatten(1, there.shape[1:])
        most = torch.iinfo(torch.int64).max
        positions = places.masked_fill(~there, most).amin(2).masked_fill(~there.any(2), 0)
    if call.q.shape[-1] != width:
        rotary = _narrow[rotary][width]
    cos, sin = rotary(call.q.float(), positions)
    return cos, sin


def _read_all(call: DecoderCall) -> Tensor:
    """One query of each head to all keys: the heads of a group are queries of one head of keys."""
    q = call.q.reshape(len(call.q), call.k.shape[1], -1, call.q.shape[-1])
    mask = None if call.mask is None else call.mask[:, None, None, :]
    return softmax_attention(q, call.k, call.v, mask=mask, scale=call.scale).reshape(call.q.shape)
