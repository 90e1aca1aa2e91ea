"""The network, part by part in the order the data meets them, and whole in ``network.py``."""

from mtlsi.model.network import MTLSINet, Output, create_model, decode, packaged_models

__all__ = ["MTLSINet", "Output", "create_model", "decode", "packaged_models"]
