"""Mixers that each break one promise about what they answer; ``breaks`` names the checks that must notice."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from foveate.errors import InvalidValue
from foveate.mixers import MixerSpec, TokenLayout
from foveate.mixers.base import grid_size
from foveate.ops import current_backend

from .honest import QUADRATIC, Honest, Landmarks, Plain


class LooksAhead(Plain):
    """Its selection leaks: what is read of the past depends on the future, values of the future stay hidden."""

    breaks: ClassVar = {"the_future_does_not_matter"}
    spec = MixerSpec(causal="strict", masks=False, order=QUADRATIC)

    def _attend(self, q, k, v, distance, visible):
        kept = k.detach().sum((1, 2, 3), keepdim=True) > 0
        return super()._attend(q, k, torch.where(kept, v, -v), distance, visible)


class SeesTheFuture(Plain):
    """Its values leak by one token."""

    breaks: ClassVar = {"the_future_does_not_matter", "the_future_does_not_matter_with_a_mask"}
    spec = MixerSpec(causal="strict", order=QUADRATIC)

    def _attend(self, q, k, v, distance, visible):
        return super()._attend(q, k, v, distance, (visible | (distance == -1)) & visible.any(-2, keepdim=True))


class ValuesLeak(SeesTheFuture):
    """The same, where the spec only promises that values do not leak."""

    breaks: ClassVar = {"later_values_do_not_matter"}
    spec = MixerSpec(causal="values", order=QUADRATIC)


class MaskedContentLeaks(Plain):
    """Masked tokens come out as zeros, but are read by the others."""

    breaks: ClassVar = {"masked_content_does_not_matter", "a_masked_tail_is_a_shorter_sequence"}

    def forward(self, x, *, mask=None, context=None, layout=None):
        self.check_input(x, mask)
        y = super().forward(x, context=context, layout=layout)
        return y if mask is None else y.masked_fill(~mask[..., None], 0.0)


class MaskIgnored(Plain):
    """Accepts a mask and does nothing with it."""

    breaks: ClassVar = {
        "masked_content_does_not_matter",
        "masked_tokens_come_out_as_zeros",
        "a_sample_without_real_tokens_is_zero",
        "a_masked_tail_is_a_shorter_sequence",
    }

    def forward(self, x, *, mask=None, context=None, layout=None):
        self.check_input(x, mask, context, layout)
        return super().forward(x)


class MaskWithoutZeros(Plain):
    """Hides masked tokens from the others, but lets them come out: as a bias."""

    breaks: ClassVar = {"masked_tokens_come_out_as_zeros", "a_sample_without_real_tokens_is_zero"}

    def _close(self, y, mask):
        return self.out(y if mask is None else y * mask[..., None])


class EmptySampleIsNaN(Plain):
    """Divides zero by zero where a sample has no real token."""

    breaks: ClassVar = {"a_sample_without_real_tokens_is_zero"}

    def _attend(self, q, k, v, distance, visible):
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5 - self.slope * distance.abs().to(q)[..., None, :, :]
        weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def cost(self, grid, batch=1):
        cost = super().cost(grid, batch)
        return replace(cost, activation_bytes=cost.activation_bytes - 4 * batch * self.num_heads * grid_size(grid) ** 2)


class MasksChangeScale(Plain):
    """Answers otherwise as soon as there is a mask."""

    breaks: ClassVar = {"a_full_mask_changes_nothing", "a_masked_tail_is_a_shorter_sequence"}

    def _close(self, y, mask):
        return super()._close(y if mask is None else y * 1.01, mask)


class BatchMatters(Plain):
    """Centres values over the batch."""

    breaks: ClassVar = {"samples_do_not_see_each_other"}
    spec = MixerSpec(masks=False, order=QUADRATIC)

    def _attend(self, q, k, v, distance, visible):
        return super()._attend(q, k, v - v.mean(0, keepdim=True), distance, visible)


class BatchDoesNotMatter(Plain):
    """Warns that samples see each other, though they do not."""

    breaks: ClassVar = {"samples_see_each_other_as_said"}
    spec = MixerSpec(batch_independent=False, order=QUADRATIC)


class SqueezesBatch(Plain):
    """Drops the batch axis when it holds one sample."""

    breaks: ClassVar = {"keeps_the_shape", "samples_do_not_see_each_other"}

    def forward(self, x, *, mask=None, context=None, layout=None):
        y = super().forward(x, mask=mask, context=context, layout=layout)
        return y[0] if len(y) == 1 else y


class Random(Plain):
    """Not the same twice."""

    breaks: ClassVar = {
        "two_calls_give_the_same_bits",
        "samples_do_not_see_each_other",
        "weights_survive_safetensors",
        "gradients_are_right",
    }

    def _close(self, y, mask):
        return super()._close(y + 1e-6 * torch.randn_like(y), mask)


class LosesPrecision(Plain):
    """Adds and subtracts a number that float32 can bear and bfloat16 cannot."""

    breaks: ClassVar = {"bfloat16_is_near_float32"}

    def _close(self, y, mask):
        return super()._close(y + 50.0 - 50.0, mask)


class BackendsDiffer(Plain):
    """Its fast form is off by a thousandth."""

    breaks: ClassVar = {"backends_agree"}

    def _close(self, y, mask):
        return super()._close(y if current_backend() == "reference" else y * 1.001, mask)


class ConstantOutput(Plain):
    """Answers the same whatever it reads."""

    breaks: ClassVar = {"output_depends_on_input", "masked_tokens_come_out_as_zeros", "every_parameter_learns"}

    def _close(self, y, mask):
        return self.out(y) * 0


class LossPerToken(Plain):
    """Reports a loss that nobody can add up."""

    breaks: ClassVar = {"auxiliary_losses_are_scalars"}

    def _close(self, y, mask):
        self.aux_losses = {"size": y.square().mean(-1)}
        return super()._close(y, mask)


class ContextRefused(Plain):
    """Promises a context and refuses it."""

    breaks: ClassVar = {"reads_a_context_instead_of_itself", "a_context_leaves_masked_tokens_zero"}
    spec = MixerSpec(cross=True, order=QUADRATIC)

    def forward(self, x, *, mask=None, context=None, layout=None):
        if context is not None:
            raise InvalidValue(f"{type(self).__name__} takes no context after all.")
        return super().forward(x, mask=mask, layout=layout)


class SegmentsIgnored(Honest):
    """Promises segments and lets documents read each other."""

    breaks: ClassVar = {"segments_are_apart"}

    def forward(self, x, *, mask=None, context=None, layout=None):
        self.check_input(x, mask, context, layout)
        together = None if layout is None else replace(layout, segments=None)
        return super().forward(x, mask=mask, context=context, layout=together)


class PlanEndsDifferently(Landmarks):
    """Puts its special token last, so that a stream cannot know when to feed it."""

    breaks: ClassVar = {"its_plan_for_n_begins_its_plan_for_more"}

    def plan_tokens(self, grid):
        return TokenLayout(tuple(grid), torch.tensor([*range(grid[0]), -1]), ("last",), (1,))

    def cost(self, grid, batch=1):
        return Honest.cost(self, (grid[0] + 1,), batch)
