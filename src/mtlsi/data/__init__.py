"""Images and their labels: generated scenes, data sets, transforms and batches."""
