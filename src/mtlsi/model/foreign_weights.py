"""Files of weights that are none of ours: what they are, and how they become what is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
LFS = b"version https://git-lfs"


def advice(path: str | Path) -> str:
    """What to do about the file ``path``, which is no .safetensors, after a semicolon; "" where there is nothing to say."""
    path = Path(path)
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        start = file.read(len(LFS))
    if start == LFS:
        return "; it is a Git LFS pointer, the weights are still on the server: git lfs pull fetches them"
    if path.suffix.lower() == ".onnx":
        return "; it is an exported graph: mtlsi predict --model FILE, or mtlsi.prediction.graph.GraphPredictor(FILE)"
    if path.suffix.lower() in PICKLED:
        return (
            '; nothing is unpickled here, convert it once: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path}', weights_only=True), '{path.with_suffix('.safetensors').name}')\", "
            "with ['state_dict'], ['model'] or the like behind load(...) where the weights lie below such a key"
        )
    return ""


def advice_on_prefix(given: Iterable[str], expected: Iterable[str]) -> str:
    """What to do about weights whose names are ``expected`` behind a prefix, as wrappers of networks write them, or ""."""
    given, own = list(given), set(expected)
    prefixes: Counter[str] = Counter()
    for name in given:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in own:
                prefixes[".".join(parts[:i]) + "."] += 1
                break
    prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
    if 2 * count <= len(own):
        return ""
    return (
        f'; the names begin with {prefix!r}, take it off: python -c "import safetensors.torch as s; s.save_file('
        f"{{k.removeprefix('{prefix}'): v for k, v in s.load_file('OLD').items()}}, 'NEW')\""
    )


def advice_on_model(weights: Path, error: BaseException) -> str:
    """What to do about a model's ``weights`` that torch or safetensors refused with ``error``, or ""."""
    found = advice(weights)
    missing = re.findall(r'"([^"]+)"', str(error).partition("Unexpected key(s)")[0])
    if found or not missing:
        return found
    try:
        with safe_open(weights, "pt") as file:
            return advice_on_prefix(file.keys(), (name.removeprefix("decoder.") for name in missing))
    except (OSError, SafetensorError):
        return ""
