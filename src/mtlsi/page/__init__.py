"""The page in a browser: drop in a photo, see and read every task, take the results away."""
