"""Converters from and to other packages' checkpoints."""

from penstock.convert.sru_package import (
    ConvertedSRU,
    convert_state_dict,
    load_sru_checkpoint,
    to_sru_package,
)

__all__ = ["ConvertedSRU", "convert_state_dict", "load_sru_checkpoint", "to_sru_package"]
