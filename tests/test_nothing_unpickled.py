"""No line of the package unpickles, or hands a file to something that does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"load_state", "register_for_checkpointing", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all",
         "read_pickle", "load_state_dict_from_url"}  # fmt: skip
"""Methods that unpickle what they are given: accelerate's, PyYAML's, pandas', torch's."""


def faults(tree: ast.AST) -> list[str]:
    """What in a module may unpickle."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or ""] if (node.module or "").split(".")[0] in MODULES else []
            found += [alias.name for alias in node.names if alias.name in CALLS | {"UnsafeLoader", "FullLoader"}]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allow_pickle"]
        elif isinstance(node, ast.Attribute) and node.attr in ("UnsafeLoader", "FullLoader", "Loader"):
            found.append(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += _faults_of_call(node, node.func)
    return found


def _faults_of_call(call: ast.Call, function: ast.Attribute) -> list[str]:
    owner = ast.unparse(function.value)
    if function.attr in CALLS:
        return [f"{owner}.{function.attr}"]
    if function.attr == "load" and owner in ("torch", "np", "numpy", "yaml"):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        safe = {
            "torch": False,  # weights_only is an unpickler of its own
            "yaml": len(call.args) > 1,  # its loader is looked at below
        }.get(owner, given.get("allow_pickle") == "False")
        return [] if safe else [f"{owner}.load"]
    return []


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles(path):
    assert faults(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "import joblib", "torch.load(path)", "torch.load(path, weights_only=True)",
     "np.load(path)", "np.load(path, allow_pickle=True)", "numpy.load(path, allow_pickle=chosen)", "yaml.load(text)",
     "yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)", "accelerator.load_state(folder)",
     "accelerator.register_for_checkpointing(x)", "from yaml import UnsafeLoader"],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line):
    assert faults(ast.parse(line))


def test_every_loader_of_yaml_is_a_safe_one():
    from yaml import SafeLoader

    from mtlsi.studies.settings import UniqueLoader

    assert issubclass(UniqueLoader, SafeLoader)
    named = {
        ast.unparse(node.args[1])
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load"
    }
    assert named <= {"UniqueLoader", "SafeLoader", "yaml.SafeLoader"}
