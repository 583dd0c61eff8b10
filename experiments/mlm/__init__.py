"""Masked language modeling on plain text: task definition, prepro command, run script."""
