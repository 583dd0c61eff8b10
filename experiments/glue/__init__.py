"""GLUE, SciTail and SNLI: task definitions, prepro command, run scripts."""
