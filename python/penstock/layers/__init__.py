"""Recurrent layers with parameters."""

from penstock.layers._recurrent import RecurrentLayerGrads, RecurrentLayerOutput
from penstock.layers.gru import GRU
from penstock.layers.lstm import LSTM, LSTMLayerGrads, LSTMLayerOutput
from penstock.layers.rnn import RNN
from penstock.layers.sliced import SlicedRNN, SlicedRNNGrads, SlicedRNNOutput
from penstock.layers.sru import SRU, SRULayerGrads, SRULayerOutput

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "LSTMLayerGrads",
    "LSTMLayerOutput",
    "RecurrentLayerGrads",
    "RecurrentLayerOutput",
    "SRULayerGrads",
    "SRULayerOutput",
    "SlicedRNN",
    "SlicedRNNGrads",
    "SlicedRNNOutput",
]
