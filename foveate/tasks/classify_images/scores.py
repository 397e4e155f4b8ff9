"""Scores of answers to a question with classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..classify_series.task import macro_f1


def class_scores(logits: Tensor, truth: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """Scores of logits ``(N, classes)`` against int64 ``(N,)``.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the share of right answers averaged over the classes that occur;
        ``macro_f1``, the F1 score averaged over the classes that occur among truths or answers; ``log_loss``, the mean
        negative logarithm of the probability of the truth, in nats. Then 1 where an answer is right, else 0, float64
        ``(N,)``; then counts ``(classes, classes)``, truth down, answers across.
    """
    count = logits.shape[1]
    chances = logits.double().log_softmax(-1)
    answer = chances.argmax(-1)
    right = (answer == truth).double()
    confusion = torch.bincount(truth * count + answer, minlength=count * count).view(count, count)
    occurs = confusion.sum(1) > 0
    recall = confusion.diagonal()[occurs].double() / confusion.sum(1)[occurs]
    metrics = {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": macro_f1(confusion),
        "log_loss": float(-chances.gather(1, truth[:, None]).mean()),
    }
    return metrics, right, confusion
