"""penstock under PyTorch: modules in place of torch.nn's, and functions with autograd.

>>> import torch, penstock.torch
>>> gru = penstock.torch.GRU(input_size=8, hidden_size=16)
>>> y, h_n = gru(torch.zeros(5, 2, 8))
>>> y.shape
torch.Size([5, 2, 16])
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as e:
    if e.name != "torch":
        raise
    raise ModuleNotFoundError(
        'penstock.torch: expected PyTorch to be installed: pip install "penstock[torch]"',
        name="torch",
    ) from e

from penstock.torch._functional import (
    GRUOutput,
    LSTMOutput,
    RNNOutput,
    SlicedOutput,
    SRUOutput,
    gru,
    lstm,
    rnn,
    sliced,
    sliced_gru,
    sru,
)
from penstock.torch._layers import SRU, SlicedRNN
from penstock.torch._recurrent import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "GRUOutput",
    "LSTMOutput",
    "RNNOutput",
    "SRUOutput",
    "SlicedOutput",
    "SlicedRNN",
    "gru",
    "lstm",
    "rnn",
    "sliced",
    "sliced_gru",
    "sru",
]
