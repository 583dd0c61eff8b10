"""Checkpoints: MT-DNN's structure `{"state", "optimizer", "config"}`, and what this project adds to it.

`config` is as MT-DNN reads it (`mtdnn_config.py`). `settings` holds the same with this project's flags and values, and
`progress` holds what a resume needs. Files are unpickled only by torch's weights-only loader, with the classes of task
definitions allowed.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor, nn

from data_utils.errors import DataError, TaskDefError, UserError, first_line
from data_utils.storage.checksum import checked_write, remove_checked, verify_checksum
from mt_dnn.checkpoints.mtdnn_config import from_mtdnn
from mt_dnn.training.sharding import sharded_like
from tasks.definition import TaskDef, checkpoint_globals

REQUIRED_KEYS = ("state", "config")
# of a head, or of the same head in the teacher of the Bregman term
PROJECTION = re.compile(r"^(?P<head>(?:module\.)?scoring_list\.\d+\.)(?P<index>1\.)?(?P<kind>weight|bias)$")

Network = TypeVar("Network", bound=nn.Module)


def save_checkpoint(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint to a temporary file next to `path`, rename it, then write its checksum, `PATH.sha256`.

    Raises:
        WriteError: the file cannot be written; an older file of that name is untouched.
    """
    with checked_write(Path(path)) as file:
        write_tensors(file, dict(content))


def write_tensors(file: IO[bytes], content: Any) -> None:
    """torch.save, whose writer reports a failed write of the file below it as a RuntimeError.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise OSError(0, f"torch cannot write it ({first_line(error)})") from error


def deltas_of(checkpoint: Path) -> Path:
    """The δ of `--adv_free` that belong to a checkpoint."""
    return checkpoint.with_suffix(".deltas")


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint of this project or of MT-DNN, tensors on the CPU.

    Its `config` is flat, and the same for both: this project's flags, the encoder's configuration over them, and
    `task_def_list`, a list of `TaskDef`. `settings` has gone into it.

    Raises:
        DataError: missing, damaged (by its checksum, where it has one), not a checkpoint, or with objects that are not
            allowed in one.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("missing; accepted: a checkpoint written by train.py or by MT-DNN", path)
    verify_checksum(path)
    try:
        _refuse_compressed(path)
        with torch.serialization.safe_globals(checkpoint_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of torch's message explains how to allow the class; only its name is shown.
        name = re.search(r"GLOBAL (\S+)", str(error))
        found = f" ({name[1]})" if name else ""
        raise DataError(
            f"is damaged or holds objects that a checkpoint may not hold{found}; none was made", path
        ) from error
    except Exception as error:  # of damaged bytes torch's loader raises many kinds
        raise DataError(f"is damaged or no checkpoint ({first_line(error)})", path) from error
    if not isinstance(content, dict) or any(not isinstance(content.get(key), Mapping) for key in REQUIRED_KEYS):
        raise DataError(f"is no checkpoint; expected a dictionary with the keys {', '.join(REQUIRED_KEYS)}", path)
    state, config = content["state"], content["config"]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
        raise DataError("is no checkpoint; state has to hold tensors by name", path)
    if not isinstance(config.get("task_def_list", []), list):
        raise DataError("is no checkpoint; task_def_list has to be a list", path)
    try:
        task_defs = [TaskDef.from_attributes(task_def) for task_def in config.get("task_def_list", [])]
    except TaskDefError as error:
        raise DataError(str(error), path) from error
    # before `settings` this project's values stood in `config`
    flat = from_mtdnn(config, state) if is_mtdnns(content) else content.pop("settings", config)
    if not isinstance(flat, Mapping):
        raise DataError("is no checkpoint; settings has to be a dictionary", path)
    return {**content, "config": {**flat, "task_def_list": task_defs}}


def is_mtdnns(content: Mapping[str, Any]) -> bool:
    """Whether MT-DNN wrote a checkpoint: it writes three keys, and this project `progress` too.

    `config` cannot decide it: MT-DNN copies the keys of the file that it started from.
    """
    return "progress" not in content


def trained_definitions(content: Mapping[str, Any]) -> list[TaskDef]:
    """A checkpoint's definitions, with the activations (`actf`) that its heads were trained with.

    Those of MT-DNN have none: its lookup of an activation fails, and gives the identity.

    Args:
        content: of `load_checkpoint`.
    """
    listed: list[TaskDef] = content["config"]["task_def_list"]
    return [task_def.replaced(actf=None) for task_def in listed] if is_mtdnns(content) else listed


def _refuse_compressed(path: Path) -> None:
    """torch writes its archives without compression; one that holds more than its size would fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it is compressed, as torch writes none")


def network_of(
    content: Mapping[str, Any], make: Callable[[], Network], path: Path | str, encoder_only: bool = False
) -> Network:
    """A network with a checkpoint's parameters.

    Args:
        content: of `load_checkpoint`.
        make: builds the network that its configuration describes.
        path, encoder_only: as in `load_state`.

    Raises:
        DataError: the configuration describes no network, or one whose parameters are others.
    """
    state = content["state"]
    for name, value in content["config"].items():
        if type(value) is int and "layer" in str(name) and value > len(state):
            raise DataError(f"names {value} layers ({name}), and holds {len(state)} parameters", path)
    try:
        with torch.device("meta"):  # without memory, for the sizes are the file's word so far
            _fitting(make(), state, path, encoder_only)
        network = make()
    except UserError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"describes a network that cannot be made ({error})", path) from error
    except Exception as error:  # of what can stand in a configuration
        raise DataError(f"describes a network that cannot be made ({first_line(error)})", path) from error
    load_state(network, state, path, encoder_only)
    return network


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path | str, encoder_only: bool = False) -> None:
    """Put a checkpoint's parameters into the network.

    Args:
        network: with `bert` and `scoring_list`.
        state: parameters by name, `bert.*` and `scoring_list.*`.
        path: named in errors.
        encoder_only: take the encoder alone and leave the heads as they are.

    Raises:
        DataError: parameters are missing, left over or of another shape; names the first.
    """
    own = network.state_dict()
    fitting = {
        name: sharded_like(tensor, own[name]) for name, tensor in _fitting(network, state, path, encoder_only).items()
    }
    network.load_state_dict(fitting, strict=not encoder_only)


def named_as_in(expected: Collection[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under the names that a network has for them.

    A head's projection is `I.1.*` after dropout and `I.*` where there is none. In older files of this project some
    heads are `I.*` with dropout too.

    Args:
        expected: the network's names.
        state: parameters by the file's names.
    """
    found = {}
    for name, tensor in state.items():
        head = PROJECTION.search(name)
        if head is not None and name not in expected:
            other = f"{head['head']}{'' if head['index'] else '1.'}{head['kind']}"
            name = other if other in expected else name
        found[name] = tensor
    return found


def _fitting(
    network: nn.Module, state: Mapping[str, Tensor], path: Path | str, encoder_only: bool
) -> dict[str, Tensor]:
    """The parameters that a network takes over; arguments and errors of `load_state`."""
    # Buffers that transformers keeps out of its own files (position ids) may stand in older checkpoints, and a constant
    # in MT-DNN's answer networks.
    unused = ("position_ids", ".alpha")
    expected = network.state_dict()
    state = named_as_in(expected, {name: tensor for name, tensor in state.items() if not name.endswith(unused)})
    if encoder_only:
        state = {name: tensor for name, tensor in state.items() if name.startswith("bert.")}
        expected = {name: tensor for name, tensor in expected.items() if name.startswith("bert.")}
    for name in [*expected, *state]:
        if name not in state:
            raise DataError(f"has no parameter {name!r}, which the network needs", path)
        if name not in expected:
            raise DataError(f"has a parameter {name!r} that the network does not have", path)
        if state[name].shape != expected[name].shape:
            found, wanted = tuple(state[name].shape), tuple(expected[name].shape)
            raise DataError(f"parameter {name!r} has shape {found}, the network expects {wanted}", path)
    return dict(state)


def checkpoints_in(folder: Path | str) -> list[Path]:
    """The checkpoints of a folder, the one that was written last first."""
    found = Path(folder).glob("model_*.pt")
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def load_with_deltas(path: Path | str) -> dict[str, Any]:
    """`load_checkpoint` for a resume, which also checks the checksum of the δ next to it."""
    content = load_checkpoint(path)
    if deltas_of(Path(path)).is_file():
        verify_checksum(deltas_of(Path(path)))
    return content


def newest_checkpoint(folder: Path | str, report: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]]:
    """The newest intact checkpoint of a folder, as `load_with_deltas` gives it.

    Args:
        report: is called with a line for each damaged checkpoint that is passed over.

    Raises:
        DataError: there is none.
    """
    for path in checkpoints_in(folder):
        try:
            return path, load_with_deltas(path)
        except DataError as error:
            report(f"{error}; passed over")
    raise DataError("holds no intact checkpoint model_*.pt to resume from; start without --resume", folder)


def remove_older(folder: Path, count: int, best: str) -> None:
    """Remove all checkpoints of a folder except the newest ones and the best.

    Args:
        count: how many of the newest stay; 0: all.
        best: the file name of the best epoch's checkpoint.
    """
    for path in checkpoints_in(folder)[count:] if count else []:
        if path.name != best:
            remove_checked(path)
