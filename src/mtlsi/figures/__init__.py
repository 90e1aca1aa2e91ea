"""Draw how a model was trained and where it is right and wrong."""
