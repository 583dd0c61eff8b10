"""Binary files: checkpoints, caches of arrays, folders of encoders; of strangers or damaged."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from data_utils.storage.array_file import map_arrays, write_arrays
from data_utils.storage.checksum import checksum_of, sha256, verify_checksum
from module.encoder import load_encoder
from mt_dnn.checkpoints.build import restore_network
from mt_dnn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from mt_dnn.data.token_arrays import ARRAYS, open_token_arrays, read_token_arrays
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.training.delta_cache import DeltaCache
from tasks import get_task
from tasks.definition import TaskDefs
from tests.encoder_folder import write_encoder
from tests.fuzz.check import reading
from tests.fuzz.inputs import DRAWN, VALUES, Choices

TASK = """
cola: {data_format: PremiseOnly, task_type: Classification, n_class: 2, metric_meta: [ACC]}
"""


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The bytes cut, with some of them changed, or others put in."""
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        at, kind = draw.randrange(len(changed) + 1), draw.randrange(6)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at : at + draw.randrange(1, 40)]
        elif kind == 2:
            changed[at:at] = draw.randbytes(draw.randrange(1, 10))
        elif at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "tasks.yml").write_text(TASK)
    task_defs = [TaskDefs(folder / "tasks.yml").get_task_def("cola")]
    bert = load_encoder(str(encoder))
    config = {**bert.config.to_dict(), "task_def_list": task_defs, "train_datasets": ["cola"], "dropout_p": 0.1}
    network = SANBertNetwork(config, bert)
    save_checkpoint(folder / "model_0.pt", {"state": network.state_dict(), "optimizer": {}, "config": config})
    return folder / "model_0.pt"


@given(DRAWN)
def test_bytes_of_checkpoints(tmp_path: Path, checkpoint: Path, drawn: bytes) -> None:
    path, again = tmp_path / "model_1.pt", tmp_path / "model_2.pt"
    path.write_bytes(damaged(checkpoint.read_bytes(), random.Random(drawn)))
    found = reading("checkpoints (bytes)", lambda: load_checkpoint(path), path)
    if found is not None:
        save_checkpoint(again, found)
        state = load_checkpoint(again)["state"]
        assert state.keys() == found["state"].keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, found["state"][name], rtol=0, atol=0, equal_nan=True)


PLAIN_VALUES = [value for value in VALUES if not isinstance(value, str) or "\ud800" not in value]


@given(DRAWN)
def test_values_in_checkpoints(tmp_path: Path, checkpoint: Path, drawn: bytes) -> None:
    """What a stranger may write with torch.save: other parameters, another configuration."""
    draw, path = random.Random(drawn), tmp_path / "model_1.pt"
    content = torch.load(checkpoint, weights_only=False)
    for _ in range(draw.randrange(3)):
        value: Any = draw.choice([*PLAIN_VALUES, torch.zeros(2), torch.zeros(0), torch.zeros(1).expand(2**33)])
        where = draw.choice([content, content["state"], *[content["config"]] * 3])
        if not isinstance(where, dict) or not where:
            break
        where[draw.choice(list(where))] = value
        if not all(isinstance(content.get(key), dict) for key in ("state", "config")):
            break
    torch.save(content, path)
    found = reading("checkpoints (values)", lambda: restore_network(str(path)), path)
    if found is not None:
        network, _ = found
        assert all(torch.equal(tensor, content["state"][name]) for name, tensor in network.state_dict().items())


class Payload:
    """Runs a command where something unpickles it."""

    def __init__(self, target: Path, kind: int):
        self.target = target
        self.kind = kind

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        code = f"open({str(self.target)!r}, 'w')"
        return (
            (os.system, (f"touch {self.target}",)),
            (eval, (code,)),
            (exec, (code,)),
            (open, (str(self.target), "w")),
            (Path.touch, (self.target,)),
            (os.mkdir, (str(self.target),)),
        )[self.kind]


GLOBALS = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cposix\nsystem\n", b"ctorch.hub\nload\n", b"csubprocess\nPopen\n",
    b"cbuiltins\ngetattr\n", b"cexperiments.exp_def\nTaskDefs\n", b"cpathlib\nPath\n", b"ccollections\nOrderedDict\n",
    b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cdata_utils.vocab\nVocabulary\n")  # fmt: skip


@given(DRAWN)
def test_pickles_with_foreign_classes(tmp_path: Path, checkpoint: Path, drawn: bytes) -> None:
    """In a checkpoint's place, or in its archive in place of the pickle: nothing runs."""
    draw, path, target = random.Random(drawn), tmp_path / "model_1.pt", tmp_path / "executed"
    payload = pickle.dumps({"state": {}, "config": Payload(target, draw.randrange(6))}, protocol=draw.randrange(6))
    if draw.random() < 0.5:
        text = f"X\x04\x00\x00\x00{draw.choice(['true', 'dirs', 'a.pt'])}".encode()
        payload = b"\x80\x02" + draw.choice(GLOBALS) + text + b"\x85" + draw.choice([b"R", b"\x81", b"b", b""]) + b"."
    if draw.random() < 0.3:
        payload = damaged(payload, draw)
    if draw.random() < 0.5:
        buffer = io.BytesIO()
        with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(buffer, "w") as archive:
            for member in source.infolist():
                archive.writestr(member.filename, payload if member.filename.endswith(".pkl") else source.read(member))
        payload = buffer.getvalue()
    path.write_bytes(payload)
    reading("checkpoints (foreign pickles)", lambda: load_checkpoint(path), path)
    assert not target.exists()


LINE = '{"uid": "%d", "label": 1, "token_id": [2, 4, 3], "type_id": [0, 0, 0], "attention_mask": [1, 1, 1]}\n'
LONG_AGO = 1_700_000_000_000_000_000  # ns


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, bytes]:
    folder = tmp_path_factory.mktemp("cached")
    (folder / "tasks.yml").write_text(TASK)
    task = get_task(TaskDefs(folder / "tasks.yml").get_task_def("cola"))
    path = folder / "cola_train.json"
    path.write_text("".join(LINE % number for number in range(5)))
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    assert open_token_arrays(path, task).cache is not None
    return path, task, (folder / ".cola_train.cache").read_bytes()


@given(DRAWN)
def test_caches(cached: tuple[Path, Any, bytes], drawn: bytes) -> None:
    """Whatever lies in a cache's place, the arrays are those of the file."""
    path, task, content = cached
    draw, cache = random.Random(drawn), path.with_name(".cola_train.cache")
    if draw.random() < 0.5:  # with a right checksum
        made_from = json.loads(content[9:].split(b"\n", 1)[0])["made_from"]
        arrays = {name: own.copy() for name, own in (read_arrays(path, task)).items()}
        changed = draw.choice([name for name in arrays if name not in ("tokens", "types", "uid_bytes", "labels")])
        arrays[changed] = draw.choice([
            arrays[changed][:-1], np.append(arrays[changed], arrays[changed][-1:]), arrays[changed] + 1,
            arrays[changed].astype(np.float64), np.zeros(0, np.int64), arrays[changed][::-1],
        ])  # fmt: skip
        write_arrays(cache, made_from, arrays)
    else:
        cache.write_bytes(damaged(content, draw))
    found = reading("caches of arrays", lambda: open_token_arrays(path, task), path)
    assert found is not None
    for name, own in read_arrays(path, task).items():
        np.testing.assert_array_equal(getattr(found, name), own)
    map_arrays(cache, {})


def read_arrays(path: Path, task: Any) -> dict[str, np.ndarray]:
    found = read_token_arrays(path, task)
    return {name: getattr(found, name) for name in ARRAYS}


LENGTHS, HIDDEN = np.array([3, 1, 2]), 4


@given(DRAWN)
def test_kept_noise(tmp_path: Path, drawn: bytes) -> None:
    """With a checksum of the right bytes, of the damaged ones, a damaged one, or none."""
    draw, path, again = random.Random(drawn), tmp_path / "model_1.deltas", tmp_path / "model_2.deltas"
    kept = DeltaCache(tmp_path / "kept", LENGTHS, HIDDEN)
    kept._content[:] = np.frombuffer(draw.randbytes(len(kept._content)), np.uint8)
    kept.save(path)
    content, checksum = path.read_bytes(), checksum_of(path).read_bytes()
    path.write_bytes(content if draw.random() < 0.3 else damaged(content, draw))
    kind = draw.randrange(4)
    if kind == 1:
        checksum_of(path).write_text(f"{sha256(path)}  {path.name}\n")
    elif kind == 2:
        checksum_of(path).write_bytes(damaged(checksum, draw))
    elif kind == 3:
        checksum_of(path).unlink()

    def load() -> DeltaCache:
        verify_checksum(path)
        kept.load(path)
        return kept

    found = reading("kept noise", load, path)
    if found is not None:
        found.save(again)
        assert again.read_bytes() == path.read_bytes()
        assert kind in (1, 3) or path.read_bytes() == content


CONFIG = {
    "architectures": ["BertModel"], "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8,
    "intermediate_size": 8, "max_position_embeddings": 16, "model_type": "bert", "hidden_act": "gelu",
    "attn_implementation": "sdpa", "auto_map": {"AutoModel": "x.Y"}, "layer_norm_eps": 1e-12, "dtype": "float32",
}  # fmt: skip


@given(DRAWN)
def test_folders_of_encoders(tmp_path: Path, encoder: Path, drawn: bytes) -> None:
    folder = tmp_path / "own"
    if not folder.is_dir():
        shutil.copytree(encoder, folder)
    weights = (encoder / "model.safetensors").read_bytes()
    draw, config = random.Random(drawn), json.dumps(CONFIG).encode()
    if draw.random() < 0.5:
        config = Choices(drawn).json([CONFIG])
    else:  # mostly in the header, which comes first
        weights = damaged(weights[: 64 * 30] if draw.random() < 0.7 else weights, draw)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(weights)
    reading("folders of encoders", lambda: load_encoder(str(folder)), folder)
