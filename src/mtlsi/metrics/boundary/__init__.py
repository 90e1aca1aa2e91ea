"""The boundary benchmark: thin, match one to one, count, and read off the best threshold."""
