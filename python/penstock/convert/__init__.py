"""Converters from and to other packages' checkpoints."""

from penstock.convert.keras_gru import load_keras_gru, to_keras_gru
from penstock.convert.sru_package import (
    ConvertedSRU,
    convert_state_dict,
    load_sru_checkpoint,
    to_sru_package,
)
from penstock.convert.torch_rnn import (
    ConvertedRNN,
    convert_torch_rnn,
    load_torch_rnn,
    to_torch_rnn,
)

__all__ = [
    "ConvertedRNN",
    "ConvertedSRU",
    "convert_state_dict",
    "convert_torch_rnn",
    "load_keras_gru",
    "load_sru_checkpoint",
    "load_torch_rnn",
    "to_keras_gru",
    "to_sru_package",
    "to_torch_rnn",
]
