"""XNLI: task definitions, prepro command, run script."""
