"""The task: patches, loss and scores over images or volumes with a class for every pixel or voxel."""

from __future__ import annotations

from typing import ClassVar

from ...registry import register
from ...spec import TaskSpec
from ..prepared import PreparedTask
from .protocol import SegmentInfo


@register("task", "segment")
class SegmentTask(PreparedTask):
    """A class for every pixel of an image, or voxel of a volume."""

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="image",
        rank=2,
        metrics=("dice",),
        higher_is_better=True,
        baselines=("background", "voxel_bayes"),
        shortlist=("softmax_attention",),
        heads_on="classify-images",
    )
    info: SegmentInfo
    info_type = SegmentInfo
    stem = "segment"
