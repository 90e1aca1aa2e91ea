"""Trained models: packaged ones, folders and the hub, and what goes wrong with them in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mtlsi.errors import MistakeError, message_of
from mtlsi.model.foreign_weights import PICKLED, advice, advice_on_model
from mtlsi.model.stored import CONFIG, OF_THE_HUB, WEIGHTS, check_settings
from mtlsi.weights import check_weights

ODD = (AttributeError, LookupError, ArithmeticError, UnicodeError, AssertionError, RecursionError)
"""What the hub's reader and timm raise where config.json says what nobody expected."""
PACKAGED = Path(__file__).parent.parent / "models"
ALIASES = {"nyud": "nyud-efficientnet-lite2"}
"""Names that stand for the best packaged model of their kind."""


def packaged_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/model.safetensors"))


def is_packaged(name: str | Path) -> bool:
    """Whether ``name`` is that of a packaged model, or stands for one, letter by letter.

    The packaged model goes before a folder of that name here. Any other text, such as ``./nyud`` or ``nyud/``, and every
    ``Path`` is a folder.
    """
    return isinstance(name, str) and ALIASES.get(name, name) in packaged_models()


def note_on_name(name: str | Path) -> str | None:
    """One line where ``name`` is a packaged model's, and a model lies in a folder of that name here; else None."""
    if not is_packaged(name) or not (Path(name) / CONFIG).is_file():
        return None
    return f"{name} is the packaged model; for the model in the folder of that name here give ./{name}"


def open_pretrained(load: Callable[..., Any], name: str | Path, **kwargs: Any) -> Any:
    """What ``load`` makes of a packaged name, a model or run folder or a hub id, in evaluation mode.

    Raises ``MistakeError`` where there is no such model, its weights do not fit its own config.json, or that was written in
    a newer format.
    """
    source = _source(name)
    folder = folder_of(name, **{key: kwargs.pop(key) for key in OF_THE_HUB if key in kwargs})
    try:
        check_settings(folder / CONFIG)
        check_weights(folder / WEIGHTS)
        model = load(str(folder), **kwargs)
    except MistakeError as error:  # config.json asks for what cannot be built
        raise MistakeError(f"model {source}: {message_of(error)}{advice(folder / WEIGHTS)}") from error
    except (RuntimeError, SafetensorError, TypeError, OSError, *ODD) as error:
        reason = message_of(error, 200)
        more = advice_on_model(folder / WEIGHTS, error)
        raise MistakeError(f"model {source}: weights and config.json do not fit each other ({reason}){more}") from error
    return model.eval()


def folder_of(name: str | Path, **asked: Any) -> Path:
    """The folder with the two files of a packaged model, a model or run folder or a model of the hub.

    ``asked``: what is asked of the hub. Raises ``MistakeError`` where there is no such model.
    """
    source = _source(name)
    if name == "":  # a variable of the shell that is not set; as a path it would be the working folder
        raise MistakeError(_not_found(name))
    if source.is_dir():
        for part in (CONFIG, WEIGHTS):
            if not (source / part).is_file():
                pickled = next((path for path in sorted(source.iterdir()) if path.suffix in PICKLED), source / part)
                raise MistakeError(
                    f"model folder {source} has no {part}; expected a run or model folder with both{advice(pickled)}"
                )
        return source
    if source.exists():
        raise MistakeError(
            f"model {source} is a file; expected the folder that holds config.json and model.safetensors{advice(source)}"
        )
    if not may_be_on_the_hub(str(name)):
        raise MistakeError(_not_found(name))
    return _fetched(str(name), asked)


def _source(name: str | Path) -> Path:
    """Where a packaged model lies, or the folder that ``name`` may be."""
    return PACKAGED / ALIASES.get(str(name), str(name)) if is_packaged(name) else Path(name)


def _fetched(name: str, asked: Mapping[str, Any]) -> Path:
    from mtlsi.model.hub import fetch

    try:
        return fetch(name, **asked)
    except MistakeError as error:
        raise MistakeError(_not_found(name, str(error))) from error


def may_be_on_the_hub(name: str) -> bool:
    """Whether ``name`` reads as OWNER/MODEL and not as the path of a missing folder: the hub is slow to say no."""
    return name.count("/") == 1 and name[0] not in "./~" and not Path(name).parent.is_dir()


def _not_found(name: str | Path, reason: str = "") -> str:
    """One line; ``reason``: why the hub, which was asked, does not have it either."""
    if reason:
        return f"model {str(name)!r} is not a folder, not packaged and not to be had from the hub: {reason}"
    packaged = packaged_models()
    known = ", ".join([*(alias for alias, name in ALIASES.items() if name in packaged), *packaged]) or "none"
    return (
        f"model {str(name)!r} is not a folder, not packaged (packaged: {known}) and not to be had from the hub; "
        "give a run folder, one of the packaged names or OWNER/MODEL of the hub"
    )
