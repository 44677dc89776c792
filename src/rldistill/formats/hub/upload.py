"""Requests to the Hugging Face hub: who the token belongs to, what a repository holds, and the upload of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rldistill
from rldistill.formats.hub.download import PREFIX, parse_ref
from rldistill.machine import check_packages
from rldistill.progress import Progress
from rldistill.types import UserError

# What an earlier push may have left in a repository and this one does not write again: it would be another policy's.
_STALE = ["exports/*", "replay.gif", "replay.mp4", "config.json", "scores.json", "curve.csv"]
_BARE = {".gitattributes", "README.md"}


def check_repo(repo: str) -> None:
    """Raises UserError where the hub would not take the name, or huggingface_hub is not installed."""
    check_packages("huggingface_hub", extra="hub", what="push")
    try:
        _, name, file = parse_ref(f"{PREFIX}{repo}")
    except UserError:
        name, file = "", None
    # As the hub has it: 96 characters at most, no two hyphens or dots in a row, none at the end.
    if not name or file is not None or repo.endswith(("/", "-", ".", ".git")) or "--" in repo or len(repo) > 96:
        raise UserError(f"{repo!r} names no repository of the hub: write --repo owner/name")


def check_hub(repo: str, *, private: bool, force: bool) -> None:
    """Asks the hub whether a push has a chance, before anything is played for it.

    Raises:
        UserError: no token, one that is not accepted, no network, a repository that holds something else and `force` is not
            set, or a public one where a private one is asked for.
    """
    from huggingface_hub import errors

    api = _api()
    with _one_line(api, repo):
        api.whoami()
        try:
            model = api.model_info(repo)
        except errors.RepositoryNotFoundError:
            return
    tool = model.library_name
    names = {file.rfilename for file in model.siblings or ()}
    if tool != "rldistill" and names - _BARE and not force:
        raise UserError(
            f"{repo} holds {f'a model of {tool}' if tool else 'something else'}: choose another --repo, or put the policy "
            "over it with --force"
        )
    if private and not model.private:
        raise UserError(f"{repo} is there already, and public: make it private in its settings, or leave --private out")


def upload(folder: Path, repo: str, *, private: bool, message: str, progress: Progress) -> str:
    """Makes the repository if it is not there, and commits a folder to it. Returns the repository's address.

    Of an earlier push, what this one does not replace is removed.

    Raises:
        UserError: the hub refuses, or cannot be reached; the message says how to send the folder again.
    """
    api = _api()
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    progress.say(f"uploading {len(files)} files, {size / 2**20:.1f} MiB, to {api.endpoint}/{repo}")
    progress.start("upload", len(files), "files")
    with _one_line(api, repo, after=f"; all that was written is in {folder}, and `hf upload {repo} {folder}` sends it"):
        place = api.create_repo(repo, repo_type="model", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo, repo_type="model", folder_path=folder, commit_message=message, delete_patterns=_STALE
        )
    progress.update(len(files))
    return str(place)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="rldistill", library_version=rldistill.__version__)


@contextmanager
def _one_line(api: Any, repo: str, after: str = "") -> Iterator[None]:
    """Turns whatever the hub, the network or the client says into one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise UserError(
            "no token of the hub here: log in with `hf auth login`, or set HF_TOKEN "
            f"(--dry-run --out FOLDER only writes the folder){after}"
        ) from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = (str(getattr(error, "server_message", None) or error).strip().splitlines() or [type(error).__name__])[
            0
        ]
        answer = reason[:200].rstrip(".")
        owner = repo.split("/")[0]
        if status == 401:
            text = (
                f"{api.endpoint} does not accept the token: log in anew with `hf auth login`, or set another HF_TOKEN"
            )
        elif status in (403, 404):
            text = (
                f"{api.endpoint} refuses {repo}: {answer}; {owner} must be your name or an organisation of yours, and the token "
                "one that may write"
            )
        elif status is not None:
            text = f"{api.endpoint} refuses {repo} ({status}): {answer}"
        else:
            text = f"cannot reach {api.endpoint}: {answer}"
        raise UserError(f"{text}{after}") from None
