"""The export command under its public name; it is defined in `mt_dnn/export/export.py`."""

from data_utils.errors import run_command_line
from mt_dnn.export.export import main

if __name__ == "__main__":
    run_command_line(main)
