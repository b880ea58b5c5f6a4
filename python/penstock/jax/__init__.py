"""penstock's operations for JAX: functions of arrays that can be compiled, differentiated, mapped.

>>> import jax, penstock.jax
>>> loss = lambda x, *weights: penstock.jax.gru(x, *weights).y.sum()
>>> gradient = jax.jit(jax.grad(loss))

They take the arguments of the functions of the same name in :mod:`penstock`, and compute the same
by the same kernels, as custom calls of XLA on the CPU and on CUDA. They may be called under
``jax.jit``, ``grad``, ``vmap``, ``checkpoint`` and ``shard_map``. Derivatives are of first order
and in reverse mode.
"""

try:
    import jax as _jax
except ImportError as e:
    raise ImportError("penstock.jax needs JAX: pip install penstock[jax]") from e

if not hasattr(_jax, "ffi"):
    raise ImportError(f"penstock.jax needs JAX 0.5 or newer (actual: {_jax.__version__})")

from penstock.jax._functions import (
    GRUOutput,
    LSTMOutput,
    RNNOutput,
    SlicedOutput,
    SRUOutput,
    gru,
    lstm,
    rnn,
    sliced,
    sru,
)

__all__ = [
    "GRUOutput",
    "LSTMOutput",
    "RNNOutput",
    "SRUOutput",
    "SlicedOutput",
    "gru",
    "lstm",
    "rnn",
    "sliced",
    "sru",
]
