"""Thin name: the export, and its command, live in `mt_dnn/export/export.py`."""

from data_utils.errors import run_command_line
from mt_dnn.export.export import main

if __name__ == "__main__":
    run_command_line(main)
