"""What a classifier's scores say: accuracy, loss, F1 and the confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.training.errors import require


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return exp(logits) / sum over the last axis, float64, without overflow."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log probability of the labels, in nats.

    Args:
        logits: (N, C), N >= 1.
        labels: int (N,).
    """
    scores = np.asarray(logits, np.float64)
    top = scores.max(axis=1)
    log_sum = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return float(np.mean(log_sum - scores[np.arange(len(labels)), labels]))


def summarise(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return accuracy, loss and macro F1 of logits (N, C) against labels (N,).

    The macro F1 is the plain mean over all C classes' F1, 0 for a class that is never right.
    """
    functions = require("sklearn.metrics")
    predicted = logits.argmax(axis=1)
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "loss": cross_entropy(logits, labels),
        "macro_f1": float(
            functions.f1_score(
                labels,
                predicted,
                labels=np.arange(logits.shape[1]),
                average="macro",
                zero_division=0,
            )
        ),
    }


def report(labels: np.ndarray, logits: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return `summarise`'s figures, each class's, and the confusion matrix.

    Args:
        labels: int (N,).
        logits: (N, C).
        names: the C classes' names.

    Returns:
        a dict fit for JSON; `confusion_matrix[i][j]` counts the examples of class i taken for
        class j, classes in the order of `labels`.
    """
    functions = require("sklearn.metrics")
    predicted = logits.argmax(axis=1)
    classes = np.arange(len(names))
    precision, recall, f1, support = functions.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    return {
        "examples": len(labels),
        **summarise(labels, logits),
        "labels": list(names),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "examples": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion_matrix": functions.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }
