"""The base of controls on transformers' decoders: another attention for chosen layers and heads.

A subclass says what the attention is, and nothing else::

    class Nearest(DecoderAttention):
        def attend(self, call):
            ...  # call.q, call.k, call.v to (batch, heads, queries, head_dim)

    with Nearest(layers=[2, 3]).attached(model):
        model.generate(**prompt)

How it gets there: each chosen layer's attention module is given a copy of the model's configuration that names
:func:`_attention` as its implementation, and a hook that hands it the layer's part, its cache and its rotary angles as
one more keyword argument. The model's own configuration, its masks and its other layers are untouched; all that is
known of a call travels with the call, nothing is kept in a table.
"""

from __future__ import annotations

import abc
import copy
import importlib
import inspect
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid, missing_extra
from .attachment import Attachment
from .base import Control
from .decoder_call import DecoderCall, LayerPass, ModelPass, OwnAttention, Part, cache_of, padding_of

#: The name under which transformers knows our attention.
NAME = "foveate_control"

#: Family, by the base class of its models: where its layers are, and the attention in a layer.
FAMILIES = {
    "LlamaPreTrainedModel": ("layers", "self_attn"),
    "Qwen2PreTrainedModel": ("layers", "self_attn"),
    "Qwen3PreTrainedModel": ("layers", "self_attn"),
    "MistralPreTrainedModel": ("layers", "self_attn"),
    "GPT2PreTrainedModel": ("h", "attn"),
    "GPTNeoXPreTrainedModel": ("layers", "attention"),
}

# The configuration a module had before the first control, and how many controls are on it.
_configured: WeakKeyDictionary[nn.Module, tuple[Any, int]] = WeakKeyDictionary()
_tokens = itertools.count()


class DecoderAttention(Control):
    """Another attention in chosen layers and heads of a Llama, Qwen, Mistral, GPT-2 or GPT-NeoX decoder.

    Works with the model's own caches (growing, static, sliding), a 2-D ``attention_mask`` with padding on either side,
    grouped-query heads, ``generate()`` with batches and beams, and a prompt read in pieces. Several controls may be
    attached to one model as long as no head of a layer has two. What is not chosen runs the model's own attention.
    Weights are not returned: ``output_attentions=True`` is refused, and dropout of attention weights is not applied.

    Args:
        layers: numbers of the layers, from 0; None for all.
        heads: numbers of the query heads in each of these layers, from 0; None for all.
    """

    accepts = tuple(FAMILIES)
    components = ("model",)

    #: Whether :meth:`attend` keeps to ``call.window``, the model's own sliding window. If not, calls that reach beyond
    #: that window are refused.
    keeps_window: ClassVar[bool] = False

    def __init__(self, *, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> None:
        super().__init__()
        self.layers = _numbers("layers", layers)
        self.heads = _numbers("heads", heads)

    @abc.abstractmethod
    def attend(self, call: DecoderCall) -> Tensor:
        """The attention: ``(batch, heads, queries, head_dim)`` for the heads of ``call``, in its dtype.

        It has to be causal and to leave out keys that ``call.mask`` does not hold; what it gives for queries that are
        padding is of no account, as long as it is finite.
        """

    def find_network(self, model_or_pipeline: Any) -> nn.Module:
        """The decoder to change, see :meth:`Control.find_network`; a compiled model is looked into."""
        if isinstance(model_or_pipeline, nn.Module):
            model_or_pipeline = getattr(model_or_pipeline, "_orig_mod", model_or_pipeline)
        return super().find_network(model_or_pipeline)

    def check(self, model: nn.Module) -> None:
        """Refuse layers and heads that the model lacks.

        Raises:
            InvalidValue: a layer or head is out of range, or the model attends both ways.
            MissingExtra: transformers is not installed.
        """
        _transformers(type(self).__name__)
        kind, config = type(model).__name__, decoder_of(model)[1].config
        for what, given, count in (
            ("layers", self.layers, len(attention_paths(model))),
            ("heads", self.heads, config.num_attention_heads),
        ):
            beyond = [n for n in given or () if n >= count]
            if beyond:
                raise invalid(what, given, f"{kind} has {what} 0 to {count - 1}")
        if not getattr(config, "is_causal", True):
            raise InvalidValue(f"{type(self).__name__} is causal; this {kind} is configured to attend both ways.")

    def install(self, attachment: Attachment) -> None:
        """Put :meth:`attend` into the chosen layers."""
        prefix, decoder = decoder_of(attachment.model)
        start = len(attachment.changes)
        paths, token = attention_paths(attachment.model), next(_tokens)
        attachment.hook(prefix, _Begin(type(self).__name__, decoder, len(paths)), before=True)
        count = decoder.config.num_attention_heads
        everything = self.heads is None or len(self.heads) == count
        chosen = range(len(paths)) if self.layers is None else self.layers
        for index in chosen:
            attachment.claim(paths[index], [f"head {h}" for h in (range(count) if everything else self.heads or ())])
            self._switch(attachment, attachment.part(paths[index]))
            part = Part(self, index, None if everything else self.heads, token)
            rotary = getattr(decoder, "rotary_emb", None)
            attachment.hook(
                paths[index], _Enter(part, _own_attention(attachment.part(paths[index])), rotary), before=True
            )
        which = "all layers" if self.layers is None else f"layers {', '.join(map(str, chosen))}"
        heads = "" if everything else f", heads {', '.join(map(str, self.heads or ()))}"
        attachment.changes[start:] = [f"attention of {which}{heads} is {type(self).__name__}"]

    def _switch(self, attachment: Attachment, module: Any) -> None:
        """Have the module ask for our attention, until the last control is off it."""
        own, users = _configured.get(module, (module.config, 0))
        if not users:
            module.config = copy.copy(own)
            module.config._attn_implementation_internal = NAME
        _configured[module] = (own, users + 1)

        def restore() -> None:
            own, users = _configured[module]
            if users > 1:
                _configured[module] = (own, users - 1)
            else:
                del _configured[module]
                module.config = own

        attachment.on_remove(restore)


def attention_paths(model: nn.Module) -> list[str]:
    """Dotted path of every layer's attention module, in order.

    Args:
        model: a decoder of a family that :class:`DecoderAttention` knows, or one of its heads.
    """
    layers, attention = next(FAMILIES[k.__name__] for k in type(model).__mro__ if k.__name__ in FAMILIES)
    prefix, decoder = decoder_of(model)
    start = f"{prefix}." if prefix else ""
    return [f"{start}{layers}.{i}.{attention}" for i in range(len(getattr(decoder, layers)))]


def decoder_of(model: Any) -> tuple[str, Any]:
    """The part that has the layers, and its path ("" where it is the model itself)."""
    prefix = model.base_model_prefix
    return (prefix, getattr(model, prefix)) if prefix in model._modules else ("", model)


def _own_attention(module: nn.Module) -> OwnAttention:
    modeling: Any = importlib.import_module(type(module).__module__)
    functions: Any = importlib.import_module("transformers.modeling_utils")
    return OwnAttention(_configured[module][0], functions.ALL_ATTENTION_FUNCTIONS, modeling.eager_attention_forward)


def _numbers(option: str, given: Sequence[int] | None) -> tuple[int, ...] | None:
    """Sorted numbers from 0, each once."""
    if given is None:
        return None
    legal = "give numbers from 0, each once, at least one of them, or None for all"
    try:
        numbers = tuple(sorted(given))
    except TypeError:
        raise invalid(option, given, legal) from None
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise invalid(option, given, legal)
    return numbers


def _transformers(name: str) -> Any:
    """transformers, which now knows our attention."""
    try:
        transformers: Any = importlib.import_module("transformers")
        masks: Any = importlib.import_module("transformers.masking_utils")
    except ImportError as error:
        raise missing_extra("transformers", "llm", name) from error
    transformers.AttentionInterface.register(NAME, _attention)
    # No mask is ever asked for under this name. Were one, a name without a function would mean no causal mask.
    transformers.AttentionMaskInterface.register(NAME, masks.eager_mask)
    return transformers


class _Begin:
    """Before the decoder runs: what is the same for all its layers goes along as ``foveate``."""

    def __init__(self, name: str, decoder: Any, layers: int) -> None:
        self.name, self.layers = name, layers
        self.names = [n for n in inspect.signature(type(decoder).forward).parameters if n != "self"]

    def __call__(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        asked = given.get("output_attentions")
        if decoder.config.output_attentions if asked is None else asked:
            raise InvalidValue(f"output_attentions=True is not possible: {self.name} forms no attention weights.")
        if "foveate" in kwargs:  # another control has been here
            return args, kwargs
        cache = cache_of(given)
        filled = [layer.is_initialized for layer in getattr(cache, "layers", ())]
        if any(filled) and sum(filled) != self.layers:
            raise InvalidValue(
                f"the cache is of another model: it holds {sum(filled)} layers, this {type(decoder).__name__} has "
                f"{self.layers}."
            )
        keeps = decoder.config.use_cache if given.get("use_cache") is None else given["use_cache"]
        padding, known = padding_of(given, self.name, cache is not None or keeps)
        return args, {**kwargs, "foveate": ModelPass(padding, known)}


class _Enter:
    """Before a layer's attention runs: its part, its cache and its rotary angles join ``foveate``."""

    def __init__(self, part: Part, own: OwnAttention, rotary: nn.Module | None) -> None:
        self.part, self.own, self.rotary = part, own, rotary

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        passed = kwargs.get("foveate")
        if isinstance(passed, LayerPass):
            return args, {**kwargs, "foveate": passed.with_part(self.part)}
        cache = cache_of(kwargs)
        keys = cache.layers[module.layer_idx].keys if cache and len(cache.layers) > module.layer_idx else None
        if keys is not None and keys.ndim == 4:
            heads = getattr(self.own.config, "num_key_value_heads", None) or self.own.config.num_attention_heads
            width = getattr(module, "head_dim", None) or module.head_size
            if (keys.shape[1], keys.shape[3]) != (heads, width):
                raise InvalidValue(
                    f"the cache is of another model: layer {module.layer_idx} holds keys of {keys.shape[1]} heads of "
                    f"{keys.shape[3]}, this model has {heads} of {width}."
                )
        angles = kwargs.get("position_embeddings")
        layer = LayerPass(passed or ModelPass(None, False), (self.part,), cache, angles, self.rotary, self.own)
        return args, {**kwargs, "foveate": layer}


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    foveate: LayerPass,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' registry: each part's heads by its control, the others as ever."""
    count = query.shape[1]
    chosen = [h for part in foveate.parts for h in (range(count) if part.heads is None else part.heads)]
    if len(chosen) == count:
        out = query.new_empty(query.shape[0], query.shape[2], count, value.shape[-1])
    else:
        out = foveate.own(module, query, key, value, attention_mask, **kwargs)
    for part in foveate.parts:
        call = foveate.call(part, module, query, key, value, attention_mask, kwargs)
        result = part.control.attend(call).transpose(1, 2)
        if part.heads is None:
            return result.contiguous(), None
        out = out.index_copy(2, torch.tensor(part.heads, device=out.device), result.to(out.dtype))
    return out, None
