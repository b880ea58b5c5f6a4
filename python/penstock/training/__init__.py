"""Training sequence classifiers: what the command ``penstock train`` does, as a library.

`run_training` trains as a `TrainConfig` says and leaves a run's folder; `TrainedModel` loads
one. Everything beyond NumPy is imported when first needed; ``pip install '.[train]'``,
in a clone of penstock, installs it.
"""

from penstock.training.config import TrainConfig
from penstock.training.errors import RunError, UserError
from penstock.training.loop import FitOptions, Interrupted, Observer, fit
from penstock.training.models import ModelOptions, SequenceClassifier, register_encoder
from penstock.training.runs import RunObserver, TrainedModel, run_training

__all__ = [
    "FitOptions",
    "Interrupted",
    "ModelOptions",
    "Observer",
    "RunError",
    "RunObserver",
    "SequenceClassifier",
    "TrainConfig",
    "TrainedModel",
    "UserError",
    "fit",
    "register_encoder",
    "run_training",
]
