"""The class labels that a conditional network is given beside its input."""

from __future__ import annotations

import torch
from torch import Tensor


def with_labels(features: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """features (N, K) with each row's label, one-hot, behind it: (N, K + classes). With no classes, as they are.

    Raises `ValueError` if the network is conditional and there are no labels (N,), int64, each below `classes`.
    """
    if classes == 0:
        return features
    if labels is None:
        raise ValueError(f"labels: got none, wanted one of {classes} classes for each row")
    one_hot = labels[:, None] == torch.arange(classes, device=labels.device)
    return torch.cat([features, one_hot.to(features.dtype)], dim=1)
