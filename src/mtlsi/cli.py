"""The command ``mtlsi``: reads what a person typed, calls the verb, says what went wrong in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jsonargparse import ArgumentParser, Namespace

from mtlsi.config import RunConfig
from mtlsi.errors import MistakeError
from mtlsi.tasks import MAX_DIST, NUM_THRESHOLDS

if TYPE_CHECKING:
    from mtlsi.evaluation.report import Scores

DEFAULT_MODEL = "nyud-mobilenetv2"
NETWORK_VERBS = ("demo", "train", "evaluate", "predict", "benchmark")
"""The verbs that run a network."""


class Parser(ArgumentParser):
    """A parser that answers a mistake with one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """One line on standard error, exit code 2."""
        print(f"mtlsi: {_one_line(message)}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code: 0 done, 1 done in part (images passed over), 2 a mistake to put right."""
    parser = build_parser()
    namespace = parser.parse_args(arguments)
    try:
        if namespace.subcommand in NETWORK_VERBS:
            from mtlsi.device import prepare_process  # lazy: imports torch

            prepare_process()
        return COMMANDS[namespace.subcommand](namespace[namespace.subcommand])
    except MistakeError as error:
        print(f"mtlsi: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mtlsi: stopped", file=sys.stderr)
        return 130


def build_parser() -> Parser:
    """The parser with one sub-command per verb."""
    parser = Parser(prog="mtlsi", description="Multi-task dense prediction with MTLSI-Net.")
    parser.add_argument("--version", action="version", version=f"mtlsi {version('mtlsi')}")
    commands = parser.add_subcommands()
    commands.add_subcommand(
        "demo", _demo_parser(), help="train a small model on generated scenes and draw what it sees"
    )
    commands.add_subcommand("train", train_parser(), help="train a model")
    commands.add_subcommand("evaluate", _evaluate_parser(), help="measure a model on labelled images")
    commands.add_subcommand("predict", _predict_parser(), help="predict every task for your images")
    data = Parser(description="Data sets on disk. Nothing is ever written into the folder that is read.")
    commands.add_subcommand("data", data, help="look into a data set's folder, derive labels, make it fast")
    _add_data_commands(data)  # jsonargparse wants the outer command first
    commands.add_subcommand(
        "boundary", _boundary_parser(), help="score the boundary maps of any detector: ODS, OIS, AP"
    )
    commands.add_subcommand(
        "benchmark", _benchmark_parser(), help="measure what a model costs: operations, time, memory, growth"
    )
    return parser


def _demo_parser() -> Parser:
    parser = Parser(
        description="Generate scenes, train the preset tiny on them, measure it on unseen ones, draw a panel."
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the images and the model")
    parser.add_argument(
        "--iterations", type=int, default=None, help="training steps; the default takes minutes on two cores"
    )
    return parser


def train_parser() -> Parser:
    """The parser of ``mtlsi train``."""
    parser = Parser(description="Train a model. Settings come from --config and may be changed one by one.")
    parser.add_argument("--config", action="config", help="a YAML file, such as those in recipes/")
    parser.add_argument("--out", type=Path, default=None, help="folder of the new run")
    parser.add_argument(
        "--resume", type=Path, default=None, help="folder of a run to go on with, under its own config.yaml"
    )
    parser.add_class_arguments(RunConfig, nested_key=None)
    return parser


def _evaluate_parser() -> Parser:
    parser = Parser(description="Measure a model at the labels' own size; prints a table.")
    parser.add_argument("model", type=str, help="a run folder, a model folder or the name of a packaged model")
    parser.add_argument("--data", type=str, default="nyud", help="nyud, pascal, folder or scenes")
    parser.add_argument("--root", type=str, default=None, help="the data set's folder")
    parser.add_argument("--split", type=str, default="val", help="val or train")
    parser.add_argument("--size", type=int, nargs=2, default=None, metavar=("H", "W"), help="size to show images at")
    parser.add_argument("--limit", type=int, default=0, help="measure on this many images only; 0: all")
    _add_device(parser)
    parser.add_argument("--json", type=Path, default=None, help="also write the scores to this file")
    parser.add_argument("--csv", type=Path, default=None, help="also write every image's own figures to this file")
    parser.add_argument(
        "--curve", type=Path, default=None, help="also draw the boundaries' precision-recall curve, as PNG"
    )
    parser.add_argument("--save", type=Path, default=None, help="folder for the predictions, in the field's formats")
    parser.add_argument(
        "--legacy-saliency", action="store_true", help="saliency through one sigmoid too many, as in some old tables"
    )
    parser.add_argument("--single-task", type=Path, default=None, help="JSON of single-task scores, for Delta_m")
    return parser


def _predict_parser() -> Parser:
    parser = Parser(description="Predict every task for images of any size; arrays and images go to --out.")
    parser.add_argument("images", type=Path, nargs="+", help="images or folders of images")
    parser.add_argument(
        "--model", type=str, default=DEFAULT_MODEL, help="a packaged name, a run or model folder, a hub id"
    )
    parser.add_argument(
        "--tasks", type=str, default=None, help="comma-separated, such as depth,normals; all by default"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    _add_device(parser)
    parser.add_argument("--dtype", type=str, default="float32", help="float32, bfloat16 or float16")
    parser.add_argument(
        "--compile", action="store_true", help="compile the network: takes a minute for every new shape"
    )
    return parser


def _add_device(parser: Parser) -> None:
    said = "cpu, cuda, mps; the default takes an accelerator if any"
    parser.add_argument("--device", type=str, default=None, help=said)


def _add_data_commands(data: Parser) -> None:
    commands = data.add_subcommands()
    check = Parser(description="Read every file; print what is there and what is wrong. Exit code 1 if something is.")
    check.add_argument("root", type=Path, help="the data set's folder")
    check.add_argument("--json", type=Path, default=None, help="also write the report to this file")
    derive = Parser(description="Work out labels from others and write them as images into OUT/TASK.")
    derive.add_argument("root", type=Path, help="the data set's folder")
    derive.add_argument("--out", type=Path, required=True, help="folder for the labels")
    derive.add_argument("--boundary", action="store_true", help="boundaries from the class labels")
    derive.add_argument("--normals", action="store_true", help="normals from depth and the camera")
    derive.add_argument(
        "--saliency", type=str, nargs="+", default=[], metavar="CLASS", help="saliency: the pixels of these classes"
    )
    for name, what in (("focal", "focal length"), ("centre", "principal point")):
        derive.add_argument(f"--{name}", type=float, nargs=2, default=None, metavar=("X", "Y"), help=f"{what}, pixels")
    derive.add_argument("--depth-step", type=float, default=None, help="metres per step, where depth has coarse steps")
    prepare = Parser(description="Write the data set in a form that loads several times as fast.")
    prepare.add_argument("root", type=Path, help="the data set's folder")
    prepare.add_argument("--out", type=Path, required=True, help="an empty folder, or one that was begun")
    prepare.add_argument(
        "--size", type=int, nargs=2, default=None, metavar=("H", "W"), help="shrink everything to this"
    )
    for name, command, said in (
        ("check", check, "what is there, and what is wrong"),
        ("derive", derive, "boundaries, normals or saliency from other labels"),
        ("prepare", prepare, "a copy that loads fast"),
    ):
        command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
        commands.add_subcommand(name, command, help=said)


def _boundary_parser() -> Parser:
    parser = Parser(description="One-to-one matching as the BSDS benchmark does it; prints ODS, OIS and AP.")
    parser.add_argument("predictions", type=Path, help="folder of grey images, 255 = certainly a boundary")
    parser.add_argument("truth", type=Path, help="folder of the same names: grey images, or BSDS .mat files")
    parser.add_argument("--max-dist", type=float, default=MAX_DIST, help="reach of a match over the image's diagonal")
    parser.add_argument("--thresholds", type=int, default=NUM_THRESHOLDS, help="number of thresholds")
    parser.add_argument("--no-nms", action="store_true", help="the maps are thin already: suppress no non-maxima")
    parser.add_argument("--no-thin", action="store_true", help="do not thin the binarised maps")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    parser.add_argument("--json", type=Path, default=None, help="also write the scores to this file")
    parser.add_argument("--curve", type=Path, default=None, help="also draw the precision-recall curve, as PNG")
    return parser


def _benchmark_parser() -> Parser:
    parser = Parser(description="Parameters, operations, time by part, memory and growth, on this machine.")
    parser.add_argument("--model", type=str, required=True, help="a preset, a packaged name, a run or model folder")
    parser.add_argument("--dataset", type=str, default=None, help="whose tasks a preset gets: nyud (default), pascal")
    parser.add_argument("--size", type=int, nargs=2, default=None, metavar=("H", "W"), help="size of the images")
    parser.add_argument("--tasks", type=str, default=None, help="predict these only, such as depth,normals")
    parser.add_argument("--dtype", type=str, default="float32", help="float32 or bfloat16")
    _add_device(parser)
    parser.add_argument(
        "--change", type=str, default="{}", help="sizes other than the preset's, such as '{\"decoder_stride\": 4}'"
    )
    parser.add_argument("--modes", type=str, default="eager", help="some of eager,compiled,cudagraphs,exported")
    parser.add_argument("--batches", type=str, default="1,4", help="images at a time, such as 1,4,16")
    parser.add_argument("--sizes", type=str, default=None, help="growth over these, such as 224x288,320x416,448x576")
    parser.add_argument("--train", action="store_true", help="also time a training step")
    parser.add_argument("--repeats", type=int, default=7, help="how often each thing is timed")
    parser.add_argument("--json", type=Path, default=None, help="also write everything to this file")
    parser.add_argument("--plot", type=Path, default=None, help="also draw the growth over --sizes, as PNG")
    return parser


def _train(options: Namespace) -> int:
    from mtlsi.training.loop import resume, train

    if (options.out is None) == (options.resume is None):
        raise MistakeError("give one of --out DIR, for a new run, and --resume DIR, for one that was started")
    if options.resume is not None:
        defaults = train_parser().get_defaults()
        if any(options[name] != defaults[name] for name in RunConfig.__dataclass_fields__):
            raise MistakeError("--resume goes on under the run's own config.yaml; leave out the other settings")
        _show(resume(options.resume))
        return 0
    _show(train(read_run(options), options.out))
    return 0


def read_run(options: Namespace) -> RunConfig:
    """The run that the settings of ``mtlsi train`` describe."""
    given = {name: value for name, value in options.items() if name not in ("config", "out", "resume")}
    config = train_parser().instantiate_classes(Namespace(given))
    return RunConfig(**{name: config[name] for name in RunConfig.__dataclass_fields__})


def _show(scores: Scores) -> None:
    from rich.console import Console

    from mtlsi.evaluation.report import score_table

    Console().print(score_table(scores))


def _evaluate(options: Namespace) -> int:
    from mtlsi.evaluation.evaluate import Request, evaluate_from_command

    evaluate_from_command(
        Request(
            options.model,
            data=options.data,
            root=options.root,
            split=options.split,
            size_hw=tuple(options.size) if options.size else None,
            limit=options.limit,
            device=options.device,
            json_path=options.json,
            csv_path=options.csv,
            curve_path=options.curve,
            save=options.save,
            single_task=options.single_task,
            legacy_saliency=options.legacy_saliency,
        )
    )
    return 0


def _predict(options: Namespace) -> int:
    from mtlsi.model.network import MTLSINet
    from mtlsi.prediction.files import predict_paths
    from mtlsi.prediction.predictor import Predictor

    model = MTLSINet.from_pretrained(options.model)
    predictor = Predictor(model, device=options.device, dtype=options.dtype, compile=options.compile)
    tasks = None if options.tasks is None else _names(options.tasks)
    outcome = predict_paths(options.images, predictor, options.out, tasks)
    return 1 if outcome.failed else 0


def _demo(options: Namespace) -> int:
    from mtlsi.demo import run_demo

    run_demo(options.out, iterations=options.iterations)
    return 0


def _data(options: Namespace) -> int:
    chosen = options[options.subcommand]
    if chosen.workers < 1:
        raise MistakeError(f"--workers {chosen.workers}; expected 1 or more")
    return {"check": _data_check, "derive": _data_derive, "prepare": _data_prepare}[options.subcommand](chosen)


def _data_check(options: Namespace) -> int:
    from rich.console import Console

    from mtlsi.dataset_tools.check import check, print_report, write_report

    report = check(options.root, num_workers=options.workers)
    print_report(report, Console())
    if options.json is not None:
        write_report(report, options.json)
    return 1 if report.problems else 0


def _data_derive(options: Namespace) -> int:
    from mtlsi.dataset_tools.derive import Camera, Derivation, derive

    if (options.focal is None) != (options.centre is None):
        raise MistakeError("--focal and --centre belong together; give both, in pixels of the depth map")
    wanted = {"boundary": options.boundary, "normals": options.normals, "saliency": bool(options.saliency)}
    derivation = Derivation(
        tuple(task for task, chosen in wanted.items() if chosen),
        camera=None if options.focal is None else Camera(tuple(options.focal), tuple(options.centre)),
        depth_step_m=options.depth_step,
        salient=tuple(options.saliency),
    )
    derive(options.root, options.out, derivation, num_workers=options.workers)
    return 0


def _data_prepare(options: Namespace) -> int:
    from mtlsi.dataset_tools.prepare import prepare

    size_hw = None if options.size is None else tuple(options.size)
    prepare(options.root, options.out, size_hw=size_hw, num_workers=options.workers)
    return 0


def _boundary(options: Namespace) -> int:
    from mtlsi.evaluation.boundary_folders import score_folders

    score_folders(
        options.predictions,
        options.truth,
        max_dist=options.max_dist,
        num_thresholds=options.thresholds,
        nms=not options.no_nms,
        thin=not options.no_thin,
        num_workers=options.workers,
        json_path=options.json,
        curve_path=options.curve,
    )
    return 0


def _benchmark(options: Namespace) -> int:
    from mtlsi.benchmarking.benchmark import Request, benchmark, read_changes, read_counts, read_sizes

    benchmark(
        Request(
            options.model,
            dataset=options.dataset,
            changes=read_changes(options.change),
            size_hw=tuple(options.size) if options.size else None,
            tasks=_names(options.tasks) if options.tasks else None,
            dtype=options.dtype,
            device=options.device,
            modes=_names(options.modes),
            batches=read_counts(options.batches),
            sizes=read_sizes(options.sizes) if options.sizes else (),
            train=options.train,
            repeats=options.repeats,
            json_path=options.json,
            plot_path=options.plot,
        )
    )
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "demo": _demo,
    "data": _data,
    "boundary": _boundary,
    "benchmark": _benchmark,
}


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
