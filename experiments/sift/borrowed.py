"""Former name of `experiments.sift.time_limited`; goes with the next release."""

from data_utils.errors import run_command_line
from experiments.sift import time_limited

if __name__ == "__main__":
    run_command_line(time_limited.main)
