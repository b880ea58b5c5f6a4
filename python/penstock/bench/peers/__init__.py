"""Everything that is measured beside penstock: one module for each family."""

from __future__ import annotations

from penstock.bench.ours import OURS
from penstock.bench.peer import Peer
from penstock.bench.peers import (
    gpu_only,
    jax_scan,
    keras_gru,
    numpy_loop,
    onednn,
    sru_package,
    torch_layers,
    torch_others,
)
from penstock.training.errors import UserError

#: Ours first, in the order of tables.
CONTENDERS: tuple[type[Peer], ...] = (
    *OURS,
    *torch_layers.PEERS,
    *onednn.PEERS,
    *sru_package.PEERS,
    *jax_scan.PEERS,
    *keras_gru.PEERS,
    *numpy_loop.PEERS,
    *torch_others.PEERS,
    *gpu_only.PEERS,
)
BY_KEY: dict[str, type[Peer]] = {kind.key: kind for kind in CONTENDERS}
OURS_KEY = OURS[0].key
PEER_KEYS = tuple(key for key in BY_KEY if key != OURS_KEY)


def check_keys(keys: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the keys, or raise UserError about one that is no peer's."""
    for key in keys:
        if key not in PEER_KEYS:
            raise UserError(f"{where}: expected peers of {', '.join(PEER_KEYS)} (actual: {key!r})")
    return keys


__all__ = ["BY_KEY", "CONTENDERS", "OURS_KEY", "PEER_KEYS", "Peer", "check_keys"]
