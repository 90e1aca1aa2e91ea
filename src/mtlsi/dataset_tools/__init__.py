"""Look into a data set's folder, derive labels, write a copy that loads fast."""
