"""ANLI: task definitions, prepro command, run script."""
