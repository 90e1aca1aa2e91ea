"""Images and plots for people."""
