"""Fast recurrent layers for any array library.

>>> import numpy as np, penstock
>>> layer = penstock.SRU(input_size=8, hidden_size=16, seed=0)
>>> y, c_last, backprop = layer(np.zeros((5, 2, 8), np.float32), training=True)
>>> y.shape
(5, 2, 16)
"""

from penstock._config import config, get_num_threads, set_num_threads, show_config
from penstock._core import __version__
from penstock._sru import SRUGrads, SRUOutput, sru

__all__ = [
    "SRUGrads",
    "SRUOutput",
    "__version__",
    "config",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "sru",
]
