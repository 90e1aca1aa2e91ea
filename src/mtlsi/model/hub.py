"""Models on the Hugging Face hub: fetched, pushed, and what goes wrong with either in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from mtlsi.errors import MistakeError, message_of
from mtlsi.model.stored import CONFIG, WEIGHTS, check_settings

LOGIN = "log in with `hf auth login`, or give a token"


def fetch(name: str, **asked: Any) -> Path:
    """The folder in the local cache that holds ``config.json`` and ``model.safetensors`` of the hub's model ``name``.

    Only these two files are fetched, the weights only where this version can read them. ``asked``: revision, token,
    cache_dir, local_files_only and force_download, as ``hf_hub_download`` takes them. Raises ``MistakeError``, with
    nothing but the reason in it, where they are not to be had.
    """
    with _told(download=True):
        config = Path(hf_hub_download(name, CONFIG, **asked))
        check_settings(config)
        # the snapshot's folder is called by its commit: both files belong to the same one
        weights = Path(hf_hub_download(name, WEIGHTS, **{**asked, "revision": config.parent.name}))
    if weights.parent != config.parent:
        raise MistakeError(f"{CONFIG} and {WEIGHTS} lie in different folders of the cache; remove them and try again")
    return config.parent


def check_push(name: str, token: str | None = None) -> None:
    """Raises ``MistakeError`` where ``name`` cannot be a model's, or nobody is logged in: before anything is computed."""
    with told_of(name):
        validate_repo_id(name)
        if not (token or get_token()):
            raise LocalTokenNotFoundError("not logged in")


def push_folder(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload what is in ``folder`` as the hub's model ``name``, made where it is missing; gives its address.

    Raises ``MistakeError`` for what the hub refuses and where it cannot be reached.
    """
    with told_of(name):
        api = HfApi(token=token)
        full = api.create_repo(name, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=full, folder_path=folder, commit_message="Model of mtlsi")
        return f"{api.endpoint}/{full}"


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """Whatever keeps ``name`` from being pushed within the context becomes a ``MistakeError``."""
    try:
        with _told(download=False):
            yield
    except MistakeError as error:
        raise MistakeError(f"{name!r} was not pushed to the hub: {error}") from error


@contextmanager
def _told(*, download: bool) -> Iterator[None]:
    """What the hub or the way to it says, as the reason alone; the library's own lines on each new try are left out."""
    library = logging.getLogger("huggingface_hub")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    except HFValidationError as error:
        raise MistakeError("expected OWNER/MODEL, of letters, digits, -, _ and .") from error
    except GatedRepoError as error:
        raise MistakeError(f"its owner wants its terms to be accepted on its page first; then {LOGIN}") from error
    except RepositoryNotFoundError as error:
        raise MistakeError(f"the hub knows no such model, or it is private: check the name, {LOGIN}") from error
    except RevisionNotFoundError as error:
        raise MistakeError("it has no such revision; give a branch, a tag or a commit of it") from error
    except LocalTokenNotFoundError as error:
        raise MistakeError(f"nobody is logged in; {LOGIN}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise MistakeError(_out_of_reach(download)) from error
    except EntryNotFoundError as error:
        raise MistakeError(f"it does not hold {CONFIG} and {WEIGHTS}; expected a model that mtlsi pushed") from error
    except HfHubHTTPError as error:
        raise MistakeError(_refusal(error)) from error
    except NO_WAY as error:
        raise MistakeError(_out_of_reach(download)) from error
    except OSError as error:
        raise MistakeError(message_of(error)) from error
    finally:
        library.setLevel(level)


def _refusal(error: HfHubHTTPError) -> str:
    """What an answer of the hub means to a person."""
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return f"the hub does not accept the token; {LOGIN}"
    if status == 403:
        return f"you may not do that there; {LOGIN} of somebody who may write"
    return f"the hub answered {status or message_of(error, 200)}; try again later"


NO_WAY: tuple[type[Exception], ...] = (ConnectionError, TimeoutError, HfHubHTTPError.__mro__[1])
"""What is said where there is no way to the hub; the last is the base of whichever HTTP library lies below."""


def _out_of_reach(download: bool) -> str:
    kept = " and it is not in the local cache" if download else ""
    return f"the hub cannot be reached{kept}; connect to the network, or unset HF_HUB_OFFLINE"
