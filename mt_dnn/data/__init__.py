"""From token files to batches: arrays, datasets, samplers, and what is drawn or weighted in them. No model."""
