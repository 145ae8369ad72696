"""To and from the Hugging Face hub, by huggingface_hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmf.checkpoint.places import PRETRAINED, WEIGHTS
from pmf.errors import UserError

FORMAT = 1
"""Of the ``config.json`` of a model's folder."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What can be a repository's name: owner and name."""
TRANSPORTS = ("requests", "httpx", "httpx2")
"""By which huggingface_hub speaks HTTP, depending on its version; it passes their errors on."""
TIMEOUT = 10.0
"""Seconds that the hub has to answer."""


def download(name: str) -> Path:
    """The folder of a model on the hub, downloaded or found in the hub's own cache.

    Raises:
        UserError: there is none of that name, it is private, is no model of this library, or the hub cannot be reached.
    """
    from huggingface_hub import errors, hf_hub_download, snapshot_download  # a second, not needed for local files

    other = "so save_pretrained did not write it; download an official file and give its path, with config="
    with _in_one_line(name, "there is no such file or folder, and"):
        offline = not _reached(name)
        try:
            record = Path(hf_hub_download(name, PRETRAINED, local_files_only=offline))
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise
            raise UserError(f"{name}: this repository has no {PRETRAINED}, {other}") from None
        _require_ours(record, f"{name}: this repository", other)
        commit = record.parent.name  # of the hub's cache: weights and config are of one commit
        files = [PRETRAINED, WEIGHTS, "README.md"]
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=files, local_files_only=offline))
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{name}: this repository has no {WEIGHTS}, {other}")
    return folder


def _reached(name: str) -> bool:
    """Whether the hub answers at all. Its library would ask again for half a minute before it says so."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=TIMEOUT)
    except Exception as error:  # an answer of any kind is for the download to tell
        return not _is_unreached(error)
    return True


def _require_ours(record: Path, where: str, other: str) -> None:
    """Look at a ``config.json`` before weights of any size are downloaded.

    Raises:
        UserError: it is not of this library, or of a later version.
    """
    try:
        values = json.loads(record.read_text())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.get("library_name") != "pmf":
        raise UserError(f"{where} holds another library's model by its {PRETRAINED}, {other}")
    if values.get("format") != FORMAT:
        raise UserError(
            f"{where} has format {values.get('format')}, and this version of pmf reads format {FORMAT}; update pmf"
        )


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Put a folder into a repository, which is made if it is not there.

    Returns:
        The address of the commit.

    Raises:
        UserError: not logged in, no rights, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if not NAME.fullmatch(name):
        raise UserError(f"push_to_hub: {name!r} is no name of a repository; give owner/name")
    with _in_one_line(name, "nothing was pushed:"):
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        pushed = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Weights, config and model card")
    return str(pushed.commit_url)


@contextmanager
def _in_one_line(name: str, lead: str) -> Iterator[None]:
    """What the hub and its library refuse, as a line for the user.

    Raises:
        UserError: in place of their errors.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{name}: {lead} the hub's repository is gated; ask for access on its page and log in"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name}: {lead} the Hugging Face hub has no such repository, or it is private; correct the name, or log "
            "in (hf auth login)"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        told = "log in with a token that may write (hf auth login)" if status in (401, 403) else "try again later"
        raise UserError(f"{name}: {lead} the Hugging Face hub answers {status}; {told}") from None
    except (errors.LocalTokenNotFoundError, errors.HFValidationError) as error:
        raise UserError(f"{name}: {lead} {' '.join(str(error).split())}") from None
    except Exception as error:
        if not _is_unreached(error):
            raise
        raise UserError(
            f"{name}: {lead} the Hugging Face hub cannot be reached; correct the path, or connect, or give a folder"
        ) from None


def _is_unreached(error: Exception) -> bool:
    """Whether an error of the hub's library says that there is no hub to be asked."""
    from huggingface_hub import errors

    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    return isinstance(error, offline) or type(error).__module__.partition(".")[0] in TRANSPORTS
