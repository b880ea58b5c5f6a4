"""Recurrent layers with parameters."""

from penstock.layers.sru import SRU, SRULayerGrads, SRULayerOutput

__all__ = ["SRU", "SRULayerGrads", "SRULayerOutput"]
