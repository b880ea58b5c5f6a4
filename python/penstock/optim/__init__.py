"""Optimisers, gradient clipping and learning-rate schedules, over NumPy and CuPy alike."""

from penstock.optim import schedules
from penstock.optim.adam import Adam, AdamW
from penstock.optim.clipping import clip_grad_norm, clip_grad_value
from penstock.optim.optimizer import Optimizer
from penstock.optim.schedules import Schedule
from penstock.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "Schedule",
    "clip_grad_norm",
    "clip_grad_value",
    "schedules",
]
