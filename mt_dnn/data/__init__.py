"""From token files to batches: memory-mapped arrays, datasets, samplers, class weights, word dropout.

Nothing here runs a model. Text files and their formats are read in `data_utils/`.
"""
