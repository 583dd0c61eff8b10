"""No line of the project runs what it reads: no eval, no shell, no unpickling, no code from a hub."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_utils.errors import DataError
from module.encoder import load_encoder
from tests.encoder_folder import write_encoder

ROOT = Path(__file__).parents[1]
REFUSED_NAMES = {"eval", "exec", "compile", "__import__"}
REFUSED_CALLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "cloudpickle.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "runpy.run_path", "np.load", "numpy.load",
    "shutil.unpack_archive",
}  # fmt: skip
REFUSED_METHODS = {"extractall", "extract"}


def sources() -> list[Path]:
    """What the project runs; tests with their payloads and what builds the documentation are none of it."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [ROOT / name for name in listed.splitlines()] or [
        path for path in ROOT.rglob("*.py") if ".venv" not in path.parts
    ]
    return [path for path in paths if path.relative_to(ROOT).parts[0] not in ("tests", "docs_build")]


def called(node: ast.Call) -> str:
    """The name that is called, such as `torch.load`."""
    return ast.unparse(node.func)


def mistakes(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, flags = called(node), {flag.arg: flag.value for flag in node.keywords}
        if name in REFUSED_NAMES | REFUSED_CALLS or name.rpartition(".")[2] in REFUSED_METHODS:
            yield f"line {node.lineno}: {name}"
        if name == "torch.load" and not is_constant(flags.get("weights_only"), True):
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if "shell" in flags and not is_constant(flags["shell"], False):
            yield f"line {node.lineno}: shell"
        if name.endswith(".from_pretrained") or name.endswith(".from_config"):
            yield from remote_code(node, flags)
        if name == "importlib.import_module" and not is_own(node.args[0]):
            yield f"line {node.lineno}: a module by a name that is read"
        if name.startswith("subprocess.") and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
            yield f"line {node.lineno}: a command as a text"


def remote_code(node: ast.Call, flags: dict[str | None, ast.expr]) -> Iterator[str]:
    if "trust_remote_code" in flags and not is_constant(flags["trust_remote_code"], False):
        yield f"line {node.lineno}: trust_remote_code"
    if called(node).endswith(".from_pretrained") and "trust_remote_code" not in flags:
        yield f"line {node.lineno}: from_pretrained without trust_remote_code=False"


def is_own(module: ast.expr) -> bool:
    """A literal, or a file of the folder that imports it."""
    return isinstance(module, ast.Constant) or ast.unparse(module).startswith("f'{__name__}.")


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_source_runs_what_it_reads() -> None:
    paths = sources()
    assert len(paths) > 100
    found = [f"{path}: {mistake}" for path in paths for mistake in mistakes(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "os.system(line)",
        "subprocess.run('ls ' + name, shell=True)",
        "subprocess.run(f'ls {name}')",
        "subprocess.run(words, shell=flag)",
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "importlib.import_module(config['module'])",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_config(config, trust_remote_code=flag)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(mistakes(source))


def test_an_encoder_that_names_code_on_a_hub_is_refused(tmp_path: Path) -> None:
    """transformers would fetch and run it where the package `kernels` is installed."""
    folder = write_encoder(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_attn_implementation": "someone/attention"}))
    with pytest.raises(DataError, match="names code on a hub, 'someone/attention', which is not run"):
        load_encoder(str(folder))


def test_code_beside_an_encoder_is_not_run(tmp_path: Path) -> None:
    folder, target = write_encoder(tmp_path / "own"), tmp_path / "executed"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModel": "code.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(target)!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(DataError, match="own"):
        load_encoder(str(folder))
    assert not target.exists()
