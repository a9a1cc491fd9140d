"""What of a modality's raw input the other modalities cannot predict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from mmbench.data.dataset import Split

COMPONENTS = 32
"""Principal components of a raw input that residual targets are made of."""
LARGEST_INPUT = 4096
"""Numbers of a sample above which it is pooled before the principal components."""

Splits3 = Mapping[str, np.ndarray]
"""Arrays for train, val and test."""


def raw_inputs(split: Split, modality: str) -> np.ndarray:
    """Return a modality's inputs ``(N, d)``, each flattened; large ones are pooled first."""
    parts = []
    device = split.y.device
    for start in range(0, len(split), 256):
        rows = torch.arange(start, min(start + 256, len(split)), device=device)
        x = split.inputs[modality].batch(rows, None).float()
        if x[0].numel() > LARGEST_INPUT:
            x = _pooled(x)
        parts.append(x.flatten(1).cpu().numpy().astype(np.float64))
    return np.concatenate(parts)


def _pooled(x: torch.Tensor) -> torch.Tensor:
    """Return inputs ``(B, ..., H, W)`` or ``(B, L)`` averaged down to a coarse grid."""
    if x.dim() == 2:
        return torch.nn.functional.adaptive_avg_pool1d(x.unsqueeze(1), LARGEST_INPUT // 4)
    if x.dim() == 3:
        return torch.nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 16)
    return torch.nn.functional.adaptive_avg_pool2d(x.flatten(1, -3), 16)


def residuals(
    raw: Mapping[str, Splits3], groups: np.ndarray | None, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each modality and split, what of its raw input the others cannot predict.

    ``raw[m][split] (N, d_m)`` is reduced to principal components ``(N, D)``, D at most
    :data:`COMPONENTS`; from them is taken their ridge prediction from the others' components. On
    training rows that prediction is cross-fitted, whole groups at a time; components and
    predictions are fitted to training rows alone.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reduced: dict[str, dict[str, np.ndarray]] = {}
    for m, arrays in raw.items():
        count = min(COMPONENTS, *arrays["train"].shape)
        steps = make_pipeline(
            StandardScaler(),
            PCA(count, svd_solver="full" if count < COMPONENTS else "auto", random_state=seed),
        ).fit(arrays["train"])
        reduced[m] = {name: steps.transform(x) for name, x in arrays.items()}
    several = groups is not None and len(np.unique(groups)) >= 5
    folds = GroupKFold(5) if several else KFold(5, shuffle=True, random_state=seed)
    found: dict[str, dict[str, np.ndarray]] = {}
    for m, mine in reduced.items():
        others = {
            name: np.concatenate([reduced[o][name] for o in reduced if o != m], axis=1)
            for name in mine
        }
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 7)))
        kept = groups if several else None
        crossed = cross_val_predict(model, others["train"], mine["train"], cv=folds, groups=kept)
        model.fit(others["train"], mine["train"])
        found[m] = {
            name: x - (crossed if name == "train" else model.predict(others[name])).reshape(x.shape)
            for name, x in mine.items()
        }
    return found
