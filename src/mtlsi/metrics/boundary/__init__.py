"""The boundary benchmark: thin, match one to one, count, and read off the best threshold."""

NUM_THRESHOLDS = 99
"""How many thresholds papers report on, evenly spaced inside 0..1."""
MAX_DIST = 0.0075
"""How far the benchmark lets a pixel lie from its match, as a fraction of the image's diagonal."""
