"""What `--model` may name. Nothing here imports torch, so that a misspelt path is reported at once."""

from __future__ import annotations

from pathlib import Path

from data_utils.errors import DataError

ACCEPTED = "accepted: the folder of a run, a checkpoint model_*.pt, or a folder of --save_hf"


def check_model_path(path: Path | str) -> Path:
    """The path of a model, which has to be a file or a folder.

    Raises:
        DataError: there is nothing.
    """
    place = Path(path)
    if not place.is_file() and not place.is_dir():
        raise DataError(f"no such file or folder; {ACCEPTED}", place)
    return place
