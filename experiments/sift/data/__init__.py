"""Data of the study: sources, their preparation, splits."""
