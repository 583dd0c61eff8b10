"""Apply a trained model to a table or to a token file: `python predict.py --help`."""

from data_utils.errors import run_command_line
from mt_dnn.prediction.command import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    run_command_line(main)
