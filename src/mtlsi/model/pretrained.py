"""Trained models: packaged ones, folders and the hub, and what goes wrong with them in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from mtlsi.errors import MistakeError, message_of
from mtlsi.reading import read_json, shortened_line

ODD = (AttributeError, LookupError, ArithmeticError, UnicodeError, AssertionError, RecursionError)
"""What the hub's reader and timm raise where config.json says what nobody expected."""
PACKAGED = Path(__file__).parent.parent / "models"
ALIASES = {"nyud": "nyud-efficientnet-lite2"}
"""Names that stand for the best packaged model of their kind."""


def packaged_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/model.safetensors"))


def is_packaged(name: str) -> bool:
    """Whether ``name`` is that of a packaged model, or stands for one."""
    return ALIASES.get(name, name) in packaged_models()


def open_pretrained(load: Callable[..., Any], name: str | Path, **kwargs: Any) -> Any:
    """What ``load`` makes of a packaged name, a model or run folder or a hub id, in evaluation mode.

    Raises ``MistakeError`` where there is no such model or its weights do not fit its own config.json.
    """
    packaged = PACKAGED / ALIASES.get(str(name), str(name))
    source = packaged if packaged.is_dir() else Path(name)
    if source.is_dir():
        for part in ("config.json", "model.safetensors"):
            if not (source / part).is_file():
                raise MistakeError(f"model folder {source} has no {part}; expected a run or model folder with both")
    elif source.exists():
        raise MistakeError(
            f"model {source} is a file; expected the folder that holds config.json and model.safetensors"
        )
    elif not may_be_on_the_hub(str(name)):
        raise MistakeError(_not_found(name))
    kwargs.setdefault("strict", True)
    try:
        if source.is_dir():
            read_json(source / "config.json", "what mtlsi train writes into a run folder")
        with redirect_stdout(io.StringIO()):  # the mixin prints where it loads from
            model = load(str(source if source.is_dir() else name), **kwargs)
    except MistakeError as error:  # config.json asks for what cannot be built
        raise MistakeError(f"model {source}: {shortened_line(error)}") from error
    except (RuntimeError, SafetensorError, TypeError, JSONDecodeError, *ODD) as error:
        if isinstance(error, TypeError) and not source.is_dir():  # the hub has no such model, or no config.json
            raise MistakeError(_not_found(name)) from error
        reason = message_of(error)[:200]
        raise MistakeError(f"model {source}: weights and config.json do not fit each other ({reason})") from error
    except (HFValidationError, OSError) as error:
        raise MistakeError(_not_found(name)) from error
    return model.eval()


def may_be_on_the_hub(name: str) -> bool:
    """Whether ``name`` reads as OWNER/MODEL and not as the path of a missing folder: the hub is slow to say no."""
    return name.count("/") == 1 and name[0] not in "./~" and not Path(name).parent.is_dir()


def _not_found(name: str | Path) -> str:
    known = ", ".join(packaged_models()) or "none"
    return (
        f"model {str(name)!r} is not a folder, not packaged (packaged: {known}) and not to be had from the hub; "
        "give a run folder or one of the packaged names"
    )
