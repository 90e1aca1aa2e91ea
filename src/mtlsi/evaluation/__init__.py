"""Measure a network on labelled images, and write what was measured."""
