"""``save_pretrained``, ``from_pretrained``, ``push_to_hub``: the hub's mixin, with one folder for all models."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin
from huggingface_hub.utils import validate_repo_id

from ..errors import InvalidType, InvalidValue
from .card import render
from .files import CARD, read_config, write, write_card
from .remote import PREFIX, card_is_there, local_folder, named, spoken


class Saved(PyTorchModelHubMixin, library_name="foveate"):
    """A module that is saved, loaded and pushed by huggingface_hub's three names.

    A subclass says what goes into ``config.json`` (:meth:`_record`) and how a folder is opened (:meth:`_open`). Weights
    are read strictly and from safetensors alone; the model card is :func:`foveate.hub.render`'s.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # The mixin's own record of options would leave out in silence what JSON has no form for.
        return object.__new__(cls)

    def _record(self) -> dict[str, Any]:
        """The entries of ``config.json``.

        Raises:
            InvalidType, InvalidValue: the model could not be built again from what is known.
        """
        raise NotImplementedError

    @classmethod
    def _open(cls, folder: Path, config: dict[str, Any], given: dict[str, Any]) -> Self:
        """The model of a folder; ``given``: constructor options from the caller, which win."""
        raise NotImplementedError

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        config: None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and a model card into a folder.

        Args:
            save_directory: made if absent; a model in it is replaced. A README.md that foveate did not write, or that
                was changed since, stays as it is, with a warning.
            config: must be None: the configuration is what rebuilds the model.
            repo_id, push_to_hub, push_to_hub_kwargs: push it as well, see :meth:`push_to_hub`.
            model_card_kwargs: {"license": ...}, that of the weights as the hub names it ("cc-by-4.0").

        Returns:
            The address of the commit if it was pushed.

        Raises:
            InvalidType: an option of the model that ``config.json`` cannot hold.
            InvalidValue: the folder cannot be written.
        """
        _refuse_config(config)
        folder = Path(save_directory)
        about = _card_options(model_card_kwargs)
        written = write(folder, self.state_dict(), self._record())  # type: ignore[attr-defined]
        if not write_card(folder, render(written, **about)):
            warnings.warn(f"{folder / CARD} is your own and stays as it is: no model card was written.", stacklevel=2)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def generate_model_card(self, *, repo: str | None = None, licence: str | None = None) -> ModelCard:  # type: ignore[override]
        """The model card that :meth:`save_pretrained` writes, for ``repo`` on the hub if it is given."""
        return ModelCard(render(self._record(), repo=repo, licence=licence))

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        config: None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        token: str | None = None,
        branch: str | None = None,
        ignore_patterns: list[str] | str | None = None,
        **more: Any,
    ) -> str:
        """Push the model to the hub, as :meth:`save_pretrained` writes it.

        Args:
            repo_id: ``user/name``; made if it does not exist. A README.md there that foveate did not write, or that
                was changed since, stays as it is, with a warning.
            config: must be None.
            model_card_kwargs: as in :meth:`save_pretrained`.
            token, branch, ignore_patterns, more: as in :meth:`huggingface_hub.PyTorchModelHubMixin.push_to_hub`.

        Returns:
            The address of the commit.

        Raises:
            InvalidType: an option of the model that ``config.json`` cannot hold.
            InvalidValue: no repo's id, no network, not logged in, no permission.
            UnknownName: there is no such branch.
        """
        _refuse_config(config)
        self._record()  # what cannot be saved is refused before a repo is made
        _card_options(model_card_kwargs)
        repo = repo_id.removeprefix(PREFIX)
        ignored = [ignore_patterns] if isinstance(ignore_patterns, str) else list(ignore_patterns or ())
        with spoken(repo, branch, pushing=True):
            validate_repo_id(repo)
            made = HfApi(token=token).create_repo(repo, private=more.get("private"), exist_ok=True)
            repo = made.repo_id  # with the user's name in front, if it was left out
            if card_is_there(repo, branch, token):
                warnings.warn(f"the {CARD} of {repo} is not foveate's or was changed: it stays as it is.", stacklevel=2)
                ignored.append(CARD)
            about = {**(model_card_kwargs or {}), "repo": repo}
            options = {"model_card_kwargs": about, "token": token, "branch": branch, **more}
            return str(super().push_to_hub(repo, ignore_patterns=ignored or None, **options))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """A saved model, in eval mode.

        Args:
            pretrained_model_name_or_path: a folder; or, if there is none of this name, a repo's id on the hub,
                ``user/name`` or ``hub:user/name``.
            force_download, token, cache_dir, local_files_only, revision: as in
                :func:`huggingface_hub.snapshot_download`.
            model_kwargs: constructor options that win over those on record: a module that was handed in when the model
                was made is handed in again.

        Raises:
            InvalidValue: no folder and no repo's id, a damaged or foreign one, a pickle, weights that do not fit; for a
                repo, no network or no permission.
            UnknownName: no such repo or revision, or a system that this installation does not have.
            InvalidType: the model is of another class, or an option does not exist.
        """
        where = named(pretrained_model_name_or_path)
        hub = {"force_download": force_download, "token": token, "cache_dir": cache_dir, "revision": revision}
        folder = local_folder(where, local_files_only=local_files_only, **hub)
        return cls._open(folder, read_config(folder), model_kwargs)


def _refuse_config(config: Any) -> None:
    if config is not None:
        raise InvalidValue("config= is not possible: config.json is what rebuilds the model, and is made from it.")


def _card_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a caller says for the card, in the mixin's words, as :func:`render` is told."""
    names = {"license": "licence", "repo": "repo"}
    for name in given or {}:
        if name not in names:
            raise InvalidType(f"a model card has no option {name!r}: its options are license, repo.")
    return {names[name]: value for name, value in (given or {}).items()}


def plain_option(value: Any) -> Any:
    """A copy of a value that JSON can hold, tuples as lists.

    Raises:
        TypeError: it is something else.
    """
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and not math.isnan(value)):
        return value
    if isinstance(value, list | tuple):
        return [plain_option(v) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: plain_option(v) for k, v in value.items()}
    raise TypeError(type(value).__name__)
