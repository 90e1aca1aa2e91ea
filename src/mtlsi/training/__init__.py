"""Train a network: the loop, what it is set up with, and its log."""
