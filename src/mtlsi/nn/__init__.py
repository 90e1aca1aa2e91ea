"""Tensor parts of the network: pure functions and small modules, no input or output."""
