"""--push_to_hub against a client that stands in for the Hub's."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import LocalTokenNotFoundError

from data_utils.errors import FlagError, UserError, run_command_line
from mt_dnn.configuration.config import parse_args
from mt_dnn.export import hub
from mt_dnn.export.hub import HubRepo
from mt_dnn.training.dry_run import dry_run
from mt_dnn.training.trainer import train
from tests.mt_dnn.runs import exportable, tiny_config

SAVE = ("--save_hf", "my model")


class FakeApi:
    """Remembers what was asked of it; `fails` names the call that raises, and what."""

    login: dict[str, Any]
    calls: list[tuple[str, dict[str, Any]]]
    fails: dict[str, Exception]
    files: list[set[str]]

    def whoami(self) -> dict[str, Any]:
        self._called("whoami")
        return self.login

    def create_repo(self, repo_id: str, **options: Any) -> RepoUrl:
        self._called("create_repo", repo_id=repo_id, **options)
        return RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else f'me/{repo_id}'}")

    def upload_folder(self, **options: Any) -> None:
        files = {str(path.relative_to(options["folder_path"])) for path in Path(options["folder_path"]).rglob("*.*")}
        self._called("upload_folder", **options)
        self.files.append(files)

    def _called(self, name: str, **options: Any) -> None:
        inspect.signature(getattr(HfApi, name)).bind(self, **options)  # as the real one is called
        self.calls.append((name, options))
        if name in self.fails:
            raise self.fails[name]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    FakeApi.login, FakeApi.calls, FakeApi.fails = {"name": "me", "orgs": [{"name": "lab"}], "auth": {}}, [], {}
    FakeApi.files = []
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    return FakeApi


def test_a_run_uploads_its_folder_once_it_is_written(
    api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = exportable(tmp_path)
    train(tiny_config(tmp_path / "out", *flags, *SAVE, "--push_to_hub", "lab/reviews", "--hub_private"))
    assert [name for name, _ in api.calls] == ["whoami", "create_repo", "upload_folder"]
    assert api.calls[1][1] == {"repo_id": "lab/reviews", "private": True, "exist_ok": True}
    upload = api.calls[2][1]
    assert (upload["repo_id"], upload["folder_path"]) == ("lab/reviews", "my model")
    names = ("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert api.files == [set(names)]
    assert 'pipeline("text-classification", "lab/reviews"' in (tmp_path / "my model" / "README.md").read_text()
    assert "--push_to_hub: https://huggingface.co/lab/reviews\n" in (tmp_path / "out" / "log.txt").read_text()


def test_the_card_names_the_repository_with_its_owner(
    api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_config(tmp_path / "out", *exportable(tmp_path), *SAVE, "--push_to_hub", "reviews"))
    assert 'pipeline("text-classification", "me/reviews"' in (tmp_path / "my model" / "README.md").read_text()


@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_failed_upload_keeps_the_folder_and_says_how_to_upload_it(
    call: str,
    api: type[FakeApi],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path / "out", *exportable(tmp_path), *SAVE, "--push_to_hub", "reviews", "--hub_private")
    api.fails = {call: ConnectionError("no route to host\nand more")}
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: train(config) and None)
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: --push_to_hub: the upload failed (no route to host); my model is kept, upload it")
    words = shlex.split(line.split(" with: ")[1])
    assert words == ["hf", "upload", "me/reviews", "my model", ".", "--private"]
    assert (tmp_path / "my model" / "model.safetensors").is_file() and (tmp_path / "out" / "model_0.pt").is_file()


LOGINS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "a b", "found 'a b', accepted: NAME or USER/NAME"),
    ({}, "a/b/c", "found 'a/b/c', accepted: NAME or USER/NAME"),
    ({"fails": {"whoami": LocalTokenNotFoundError("none")}}, "me/x", "not logged in; do it with: hf auth login$"),
    ({"fails": {"whoami": ConnectionError("offline")}}, "me/x", r"does not confirm the login \(offline\); log in with"),
    ({"login": {"name": "me"}}, "you/x", "the login may not write to you, accepted: me$"),
    ({"login": {"name": "me", "orgs": [{"name": "lab"}]}}, "you/x", "accepted: me, lab$"),
    (
        {"login": {"name": "me", "auth": {"accessToken": {"role": "read"}}}},
        "me/x",
        "can only read; log in with one that",
    ),
]


@pytest.mark.parametrize(("state", "name", "told"), LOGINS)
def test_what_would_fail_at_the_end_is_told_before_training(
    state: dict[str, Any], name: str, told: str, api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for attribute, value in state.items():
        setattr(api, attribute, value)
    with pytest.raises(FlagError, match=told) as caught:
        train(tiny_config(tmp_path / "out", *exportable(tmp_path), *SAVE, "--push_to_hub", name))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.pt"))
    assert {called for called, _ in api.calls} <= {"whoami"}


@pytest.mark.parametrize("name", ["me/x", "lab/x", "x"])
def test_ones_own_names_and_those_of_ones_organizations_are_accepted(name: str, api: type[FakeApi]) -> None:
    api.login = {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}
    repo = HubRepo(name, False, "folder")
    assert api.calls == [("whoami", {})]
    assert repo.name == (name if "/" in name else f"me/{name}")


def test_a_dry_run_asks_for_the_login_and_uploads_nothing(
    api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = (*exportable(tmp_path), *SAVE, "--push_to_hub", "lab/reviews")
    dry_run(tiny_config(tmp_path / "out", *flags))
    assert api.calls == [("whoami", {})]
    api.login = {"name": "you"}
    with pytest.raises(FlagError, match="may not write to lab"):
        dry_run(tiny_config(tmp_path / "out", *flags))


def test_the_file_of_a_run_uploads_nothing_anew(
    api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny_config(tmp_path / "out", *exportable(tmp_path), *SAVE, "--push_to_hub", "me/x", "--hub_private"))
    api.calls.clear()
    again = parse_args(["--config", "out/config.yml", "--output_dir", "again", "--save_hf", "other"])
    assert again.training.push_to_hub is None and not again.training.hub_private and not again.notices
    train(again)
    assert (tmp_path / "other" / "config.json").is_file() and not api.calls
    assert parse_args(["--config", "out/config.yml", "--push_to_hub", "me/y"]).training.push_to_hub == "me/y"


def test_the_flags_need_each_other() -> None:
    with pytest.raises(UserError, match="^--push_to_hub: needs --save_hf, the folder that is uploaded$"):
        parse_args(["--push_to_hub", "me/x"])
    assert "--hub_private: no effect without --push_to_hub" in parse_args(["--hub_private"]).notices


def test_without_a_login_the_real_client_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No request is sent: the client finds no token first."""
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(FlagError, match="not logged in; do it with: hf auth login"):
        HubRepo("me/x", False, "folder")
