"""Optimisers and learning-rate schedules from a recipe."""

from __future__ import annotations

from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR

from mmbench.config import Recipe


def build_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """Return the recipe's optimiser over parameter groups, which may carry their own settings."""
    match recipe.optimizer:
        case "sgd":
            momentum = 0.9 if recipe.momentum is None else recipe.momentum
            return SGD(groups, recipe.lr, momentum=momentum, weight_decay=recipe.weight_decay)
        case "adam":
            return Adam(groups, recipe.lr, weight_decay=recipe.weight_decay)
        case "adamw":
            return AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay)


def build_schedule(optimizer: Optimizer, recipe: Recipe, epochs: int) -> LRScheduler:
    """Return the recipe's schedule for a stage of so many epochs; it is stepped once an epoch."""
    match recipe.schedule:
        case "constant":
            return ConstantLR(optimizer, factor=1.0, total_iters=0)
        case "cosine":
            return CosineAnnealingLR(optimizer, T_max=epochs)
        case "step":
            return StepLR(optimizer, recipe.step_epochs or 70, recipe.step_factor or 0.1)
