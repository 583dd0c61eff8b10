"""Tokenize canonical files, or tables of your own: `python prepro_std.py --help`."""

from data_utils.errors import run_command_line
from experiments.preparation.command import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    run_command_line(main)
