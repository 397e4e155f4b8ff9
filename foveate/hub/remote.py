"""Models on the Hugging Face hub: fetching and pushing folders, and what goes wrong, in one sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, errors, hf_hub_download, snapshot_download
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..errors import FoveateError, InvalidValue, UnknownName
from .card import render
from .files import CARD, CONFIG, PICKLES, WEIGHTS, is_ours, read_config

#: In front of a repo's id, where a folder could be meant as well: ``hub:user/name``.
PREFIX = "hub:"
_LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass a token"


def is_remote(where: str | Path) -> bool:
    """Whether a place is on the hub: a string that begins with ``hub:``."""
    return isinstance(where, str) and where.startswith(PREFIX)


def named(where: str | Path) -> str | Path:
    """A place as :func:`local_folder` takes it, by the hub's custom: what is not here and is a repo's id is on the hub.

    Args:
        where: a folder or file; or, if there is none of this name, ``user/name`` or ``hub:user/name``.

    Raises:
        InvalidValue: neither.
    """
    if not isinstance(where, str) or is_remote(where) or Path(where).exists():
        return where
    try:
        validate_repo_id(where)
    except errors.HFValidationError as error:
        raise InvalidValue(f"{where!r} is no folder here, and no repo's id (user/name).") from error
    return PREFIX + where


def local_folder(
    where: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder that a place names: itself, or, for ``hub:user/name``, a cached copy, which is brought up to date.

    Args:
        where: a folder, or ``hub:user/name``. A name without ``hub:`` is never looked for on the hub.
        revision, token, cache_dir, force_download, local_files_only: as in
            :func:`huggingface_hub.snapshot_download`; without meaning for a folder.

    Raises:
        InvalidValue: no repo id, no network and no copy in the cache, no permission, or a repo without a model in
            safetensors.
        UnknownName: there is no such repo or revision.
    """
    if not is_remote(where):
        if revision is not None:
            raise InvalidValue(f"revision={revision!r} is not possible for {where}: a folder has none; hub:... has.")
        return Path(where)
    repo = str(where).removeprefix(PREFIX)
    with spoken(repo, revision):
        validate_repo_id(repo)
        folder = snapshot_download(
            repo,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=[CONFIG, WEIGHTS],
            library_name="foveate",
            library_version=__version__,
        )
        if not local_files_only and not Path(folder, WEIGHTS).exists():
            held = HfApi(token=token).list_repo_files(repo, revision=revision)
            _refuse_pickles(repo, held)
    if not Path(folder, CONFIG).exists():
        raise InvalidValue(f"{where} is not a model of foveate's: it has no {CONFIG}.")
    return Path(folder)


def _refuse_pickles(repo: str, files: list[str]) -> None:
    pickles = sorted(f for f in files if f.endswith(PICKLES))
    if pickles:
        raise InvalidValue(
            f"{PREFIX}{repo} holds its weights as {pickles[0]}, a pickle, which can run code when opened: only "
            f"{WEIGHTS} is read."
        )
    raise InvalidValue(f"{PREFIX}{repo} has no {WEIGHTS}: it is not a model of foveate's.")


def push_folder(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Push a model with foveate",
    licence: str | None = None,
) -> tuple[str, list[str]]:
    """Push a saved model as it is: its configuration, weights and card, and no other file of the folder.

    Args:
        folder: such as ``OUT/best``.
        repo: ``user/name``, made if it does not exist.
        private, token, branch, create_pr, commit_message: as in the mixin's ``push_to_hub``.
        licence: of the weights, for a card that foveate wrote.

    Returns:
        The address of the commit, and what the user should know (a card of theirs that was left as it is).

    Raises:
        InvalidValue: no saved model, no repo id, no network, not logged in, no permission.
        UnknownName: there is no such repo or branch.
    """
    folder, repo = Path(folder), repo.removeprefix(PREFIX)
    config, card = read_config(folder), folder / CARD
    if not (folder / WEIGHTS).is_file():
        raise InvalidValue(f"{folder / WEIGHTS} is missing: the checkpoint is incomplete.")
    said: list[str] = []
    with spoken(repo, branch, pushing=True):
        validate_repo_id(repo)
        api = HfApi(token=token, library_name="foveate", library_version=__version__)
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        content: dict[str, Any] = {name: str(folder / name) for name in (CONFIG, WEIGHTS)}
        if card_is_there(repo, branch, token):
            said.append(f"The {CARD} of {repo} is not foveate's or was changed: it stays as it is.")
        elif card.exists() and not is_ours(card.read_text(encoding="utf-8", errors="replace")):
            content[CARD] = str(card)
        else:
            content[CARD] = render(config, repo=repo, licence=licence).encode("utf-8")
        done = api.create_commit(
            repo,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in content.items()],
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    return str(done.pr_url or done.commit_url), said


def card_is_there(repo: str, branch: str | None, token: str | None) -> bool:
    """Whether a repo has a card that must stay: one that foveate did not write, or that was changed since."""
    try:
        file = hf_hub_download(repo, CARD, revision=branch, token=token)
    except errors.LocalEntryNotFoundError:  # no answer, which is not the answer "none"
        raise
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError, errors.RepositoryNotFoundError):
        return False
    return not is_ours(Path(file).read_text(encoding="utf-8", errors="replace"))


@contextmanager
def spoken(repo: str, revision: str | None = None, *, pushing: bool = False) -> Iterator[None]:
    """Turn what the hub's client raises into foveate's errors, each one sentence."""
    try:
        yield
    except FoveateError:
        raise
    except Exception as error:
        cause: BaseException = error
        if type(error) is ValueError and error.__cause__ is not None:  # what force_download puts around the reason
            cause = error.__cause__
        known = _in_our_words(cause, repo, revision, "written" if pushing else "read")
        if known is None:
            raise
        raise known from error


#: What the client's transport raises for a broken connection: another library's from version to version.
_TRANSPORT = (
    *(c for c in errors.HfHubHTTPError.__mro__ if c.__module__.split(".")[0] not in ("huggingface_hub", "builtins")),
    ConnectionError,
    TimeoutError,
)


def _in_our_words(error: BaseException, repo: str, revision: str | None, done: str) -> FoveateError | None:
    """The error that a user sees for one of the hub's client; None: it is not about the hub."""
    place = f"{PREFIX}{repo}"
    if isinstance(error, errors.GatedRepoError):
        return InvalidValue(f"{place} is gated: ask for access on its page, then {_LOG_IN}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownName(f"{place} does not exist, or it is private: check the name, or {_LOG_IN}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownName(f"{place} has no revision {revision!r}: give a branch, a tag or a commit of it.")
    if isinstance(error, errors.HFValidationError):
        return InvalidValue(f"{repo!r} is no repo's id: write user/name.")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return InvalidValue(f"{place} needs a token: {_LOG_IN}.")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return InvalidValue(
            f"{place} is not in the cache, and the hub was not asked or did not answer: check the network, "
            f"HF_HUB_OFFLINE and local_files_only."
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return InvalidValue(f"{place} cannot be {done} ({status}): {_LOG_IN}, with the right to do so.")
        return InvalidValue(f"the hub refused {place} ({status}): {_first_line(error)}.")
    if isinstance(error, _TRANSPORT):
        reason = f"{type(error).__name__}: {_first_line(error)}"
        return InvalidValue(f"{place}: the hub cannot be reached ({reason}): check the network.")
    return None


def _first_line(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or str(error)
    return re.sub(r"\s+", " ", said.strip().split("\n")[0])[:200].rstrip(".") or "no reason given"
