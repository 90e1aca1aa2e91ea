"""From an image to arrays and files."""
