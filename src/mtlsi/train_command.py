"""``mtlsi train``, whose settings come from a YAML file, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace, set_parsing_settings

from mtlsi import processes
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.errors import MistakeError
from mtlsi.flags import Parser
from mtlsi.plain_settings import ConfigFile, use_plain_values

if TYPE_CHECKING:
    from mtlsi.evaluation.report import Scores


def train_parser() -> Parser:
    """The parser of ``mtlsi train``."""
    use_plain_values()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the sentence under a field is its help
    parser = Parser(description="Train a model. Settings come from --config and may be changed one by one.")
    parser.add_argument("--config", action=ConfigFile, help="a YAML file, such as those in recipes/")
    parser.add_argument("--out", type=Path, default=None, help="folder of the new run")
    parser.add_argument(
        "--resume",
        type=Path,
        default=None,
        help="folder of a run to continue, under its own config.yaml; --train.iterations and what changes no weights may be "
        "given anew",
    )
    parser.add_argument(
        "--dry-run", action="store_true",
        help="build everything, train and measure a few steps, say what the run would cost, and write nothing",
    )  # fmt: skip
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE",
        help="a module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code.",
    )  # fmt: skip
    parser.add_class_arguments(RunConfig, nested_key=None)
    return parser


def read_run(namespace: Namespace) -> RunConfig:
    """The run that the settings of ``mtlsi train`` describe."""
    given = {name: value for name, value in namespace.as_dict().items() if name in RunConfig.__dataclass_fields__}
    config = RunConfig(**given | {"data": DataConfig(**given["data"]), "train": TrainConfig(**given["train"])})
    return config.with_plugins(namespace.plugin)


def train_from_command(namespace: Namespace, arguments: Sequence[str]) -> int:
    """Train, resume or only look, as the command line, ``arguments``, says; gives the exit code."""
    from mtlsi.training.loop import resume, train

    if namespace.dry_run:
        return _dry_run(namespace)
    if (namespace.out is None) == (namespace.resume is None):
        raise MistakeError("give one of --out DIR, for a new run, and --resume DIR, to continue one")
    if namespace.resume is None:
        _show(train(read_run(namespace), namespace.out))
        return 0
    if namespace.plugin:
        raise MistakeError("--resume imports the plugins in the run's own config.yaml; leave out --plugin")
    given = vars(train_parser().parse_args(arguments, defaults=False).as_flat())
    settings = {name: value for name, value in given.items() if name.split(".")[0] in RunConfig.__dataclass_fields__}
    _show(resume(namespace.resume, settings))
    return 0


def _dry_run(namespace: Namespace) -> int:
    from mtlsi.training.dry_run import dry_run

    if namespace.resume is not None:
        raise MistakeError("--dry-run looks at a new run; leave out --resume")
    dry_run(read_run(namespace), namespace.out)
    return 0


def _show(scores: Scores) -> None:
    if not processes.is_first():
        return
    from rich.console import Console

    from mtlsi.evaluation.report import score_table

    Console().print(score_table(scores))
