"""Loading never runs code: no call in the source unpickles, evaluates text or imports what a file names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "mtlsi"
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pandas"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load", "torch.jit.load", "torch.export.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "yaml.safe_load", "np.load", "numpy.load", "os.system", "os.popen",
    "pd.read_pickle", "load_state_dict_from_url", "torch.hub.load_state_dict_from_url",
}  # fmt: skip
ARGUMENTS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "shell": True}
ALLOWED = {
    ("data/readers/array_files.py", "np.load"),  # allow_pickle=False, after its header was checked
    ("yaml_files.py", "yaml.load"),  # the one loader
    ("plugins.py", "import_module"),  # plugins, which a person names
    ("__init__.py", "import_module"),  # these four import modules of fixed names, when they are needed
    ("later.py", "import_module"),
    ("metrics/__init__.py", "import_module"),
    ("model/quick_timm.py", "import_module"),
    ("exporting/program.py", "torch.export.load"),  # the file that it has just written
}


def findings(path: str, text: str) -> list[str]:
    """What in a source file could run code by loading, with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            names = [name for name in names if name.split(".")[0] in MODULES and (path, name) not in ALLOWED]
            found += [f"{path}:{line} imports {name}" for name in names]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            bad = name in CALLS | NAMES or name.endswith(
                (".load_as_pickle", "accelerator.load_state", ".register_for_checkpointing")
            )
            if name == "yaml.load" or name.endswith("import_module"):
                bad = True
            if bad and (path, name) not in ALLOWED:
                found.append(f"{path}:{line} calls {name}")
            for keyword in node.keywords:
                if keyword.arg in ARGUMENTS and ast.unparse(keyword.value) == str(ARGUMENTS[keyword.arg]):
                    found.append(f"{path}:{line} says {keyword.arg}={ARGUMENTS[keyword.arg]}")
            if name == "np.load" and "allow_pickle=False" not in ast.unparse(node):
                found.append(f"{path}:{line} np.load without allow_pickle=False")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
        "accelerator.load_state(folder)",
        "accelerator.register_for_checkpointing(x)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "f(x, weights_only=False)",
    ],
)
def test_what_runs_code_is_found(text):
    assert findings("anywhere.py", text)


def test_nothing_in_the_source_runs_code_by_loading():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 100
    found = [one for file in files for one in findings(file.relative_to(SOURCE).as_posix(), file.read_text())]
    assert found == []
