"""RTE and STS-B for a study: GLUE's development set is the test set, a tenth of its training set the development set.

The tenth is the last one in the order of the pairs' SHA-256 (`hutto.in_hash_order`). Pairs of the test set are removed
from the training set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.glue.glue_layouts import LAYOUTS
from experiments.glue.glue_prepro import read_part
from experiments.sift.data.hutto import in_hash_order, without

FOLDER = "glue"
DEV_SHARE = 0.1


class Pair(NamedTuple):
    """Two sentences and their label, or the number of their similarity."""

    uid: str
    label: str
    premise: str
    hypothesis: str

    @property
    def text(self) -> str:
        """Both sentences; pairs with the same one are duplicates."""
        return f"{self.premise} {self.hypothesis}"


def pairs(task: str, source: Callable[[str], Path]) -> dict[str, list[Pair]]:
    """`TASK_train`, `TASK_dev` and `TASK_test`.

    Args:
        task: `rte` or `stsb`.
        source: name of a file in GLUE's folder → its path; raises DataError if it is missing.

    Raises:
        DataError: a file is missing or malformed.
    """
    (layout,) = LAYOUTS[task]
    (folder,) = layout.folders
    published = {}
    for part in layout.parts:
        if part.split in ("train", "dev"):
            path = source(f"{folder}/{part.files[0]}")
            examples = read_part(path.parent, layout, part).examples
            published[part.split] = [Pair(f"{part.split}-{uid}", *fields) for uid, *fields in examples]
    trained = without(published["train"], published["dev"])
    print(
        f"{task}: {len(published['train']) - len(trained)} pairs of the training set are in the test set and left out"
    )
    ordered = in_hash_order(trained)
    count = round((1 - DEV_SHARE) * len(ordered))
    return {
        f"{task}_train": ordered[:count],
        f"{task}_dev": without(ordered[count:], ordered[:count]),
        f"{task}_test": published["dev"],
    }
