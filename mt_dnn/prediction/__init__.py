"""From texts to answers: trained models applied to texts and tables.

    from mt_dnn.prediction import load_model

    model = load_model("checkpoint")  # a run's folder, a checkpoint, or a folder of --save_hf
    model.predict(["A good film.", "A poor one."])

Here lives what finds a model, tokenizes texts for it, and gives its answers in their natural form. What an answer of a
task type is belongs to `tasks/`, files of tables to `data_utils/`; nothing here trains.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mt_dnn.prediction.loading import load_model
    from mt_dnn.prediction.text_model import Scored, TextModel
    from tasks.values import Answer

__all__ = ["Answer", "Scored", "TextModel", "load_model"]

PLACES = {
    "Answer": "tasks.values",
    "Scored": "mt_dnn.prediction.text_model",
    "TextModel": "mt_dnn.prediction.text_model",
    "load_model": "mt_dnn.prediction.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: it takes seconds, and `predict.py --help` need not wait.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)
