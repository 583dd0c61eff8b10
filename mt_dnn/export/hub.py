"""`--push_to_hub`: the folder of `--save_hf` as a repository of the Hugging Face Hub, after the run."""

from __future__ import annotations

import shlex

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from data_utils.errors import FlagError, UserError, first_line


class HubRepo:
    """A repository of the Hub. The login is checked before the run, the repository is made after it.

    Args:
        name: `NAME` or `USER_OR_ORGANIZATION/NAME`; the attribute of that name includes the owner.
        private: whether a new repository is private.
        folder: what is uploaded.

    Raises:
        FlagError: no valid name, no login, a login without the right to write there, or the Hub cannot be reached.
    """

    def __init__(self, name: str, private: bool, folder: str):
        self.name, self.private, self.folder = name, private, folder
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            accepted = "NAME or USER/NAME, of letters, digits, '-', '_' and '.'"
            raise FlagError(f"--push_to_hub: found {name!r}, accepted: {accepted}") from error
        self.api = HfApi()
        try:
            login = self.api.whoami()
        except LocalTokenNotFoundError as error:
            raise FlagError("--push_to_hub: not logged in; do it with: hf auth login") from error
        except Exception as error:  # the Hub's client and its libraries raise many kinds
            raise FlagError(
                f"--push_to_hub: the Hub does not confirm the login ({first_line(error)}); log in with: hf auth login, "
                "or leave the flag out and upload the folder of --save_hf later"
            ) from error
        token = login.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise FlagError(
                "--push_to_hub: the login's token can only read; log in with one that can write: hf auth login"
            )
        owner = name.rpartition("/")[0]
        if not owner:
            self.name = f"{login['name']}/{name}"
        owners = [login["name"], *(organization["name"] for organization in login.get("orgs", ()))]
        if owner and owner not in owners:
            raise FlagError(f"--push_to_hub: the login may not write to {owner}, accepted: {', '.join(owners)}")

    def push(self) -> str:
        """Upload the folder and return the repository's address. A missing repository is made.

        Raises:
            UserError: the upload failed; the folder is kept, and the message has the command that uploads it.
        """
        try:
            url = self.api.create_repo(self.name, private=self.private, exist_ok=True)
            self.api.upload_folder(
                repo_id=url.repo_id, folder_path=self.folder, commit_message="Upload of a trained model"
            )
        except Exception as error:  # as above
            words = ["hf", "upload", self.name, self.folder, "."]
            command = shlex.join(words + (["--private"] if self.private else []))
            raise UserError(
                f"--push_to_hub: the upload failed ({first_line(error)}); {self.folder} is kept, upload it with: "
                f"{command}"
            ) from error
        return str(url)
