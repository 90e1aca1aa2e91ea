"""Generated rooms with exact labels for every task."""
