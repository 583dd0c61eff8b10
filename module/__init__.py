"""Parts of networks: encoders by name, poolers, heads, the stochastic answer network, fast linear layers.

A file here may import `data_utils`, torch and transformers. Losses, task definitions, flags and training do not belong
here.
"""
