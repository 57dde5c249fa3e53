"""Focal loss of independent classes, for the dense predictions of instance networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ALPHA, _GAMMA = 0.25, 2.0


def focal_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Returns the focal loss of every element, alpha 0.25, gamma 2.

    Source: arXiv 1708.02002, equation 5.

    Args:
        logits: Any shape.
        truth: 0 or 1, same shape.
    """
    p = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = p + truth - 2 * p * truth  # 1 - p at the truth, p elsewhere
    alpha = truth * _ALPHA + (1 - truth) * (1 - _ALPHA)
    return alpha * wrong**_GAMMA * entropy
