"""Fast recurrent layers for any array library.

>>> import numpy as np, penstock
>>> layer = penstock.SRU(input_size=8, hidden_size=16, seed=0)
>>> y, c_last, backprop = layer(np.zeros((5, 2, 8), np.float32), training=True)
>>> y.shape
(5, 2, 16)
"""

from penstock import convert, nn, optim
from penstock._config import (
    config,
    get_batch_invariant,
    get_cmake_dir,
    get_include,
    get_num_threads,
    release_memory,
    set_batch_invariant,
    set_num_threads,
    show_config,
)
from penstock._core import __version__
from penstock._gru import GRUGrads, GRUOutput, gru
from penstock._lstm import LSTMGrads, LSTMOutput, lstm
from penstock._rnn import RNNGrads, RNNOutput, rnn
from penstock._sliced import SlicedGrads, SlicedOutput, sliced, sliced_gru
from penstock._sru import SRUGrads, SRUOutput, sru
from penstock.layers import GRU, LSTM, RNN, SRU, SlicedRNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "GRUGrads",
    "GRUOutput",
    "LSTMGrads",
    "LSTMOutput",
    "RNNGrads",
    "RNNOutput",
    "SRUGrads",
    "SRUOutput",
    "SlicedGrads",
    "SlicedOutput",
    "SlicedRNN",
    "__version__",
    "config",
    "convert",
    "get_batch_invariant",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "gru",
    "lstm",
    "nn",
    "optim",
    "release_memory",
    "rnn",
    "set_batch_invariant",
    "set_num_threads",
    "show_config",
    "sliced",
    "sliced_gru",
    "sru",
]
