"""The command ``mtlsi``: reads the command line, calls the verb, reports a mistake in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mtlsi import garbage, interrupts, processes, streams
from mtlsi.errors import OF_THE_SYSTEM, MistakeError, Stopped, one_line, refusal
from mtlsi.flags import Parser, add_flags, read_flags
from mtlsi.options.data import CheckOptions, DeriveOptions, PrepareOptions
from mtlsi.options.measuring import (
    BenchmarkOptions,
    BoundaryOptions,
    DiagnoseOptions,
    EvaluateOptions,
    FiguresOptions,
    PackOptions,
)
from mtlsi.options.training import DemoOptions, StudyOptions
from mtlsi.options.using import ExportOptions, PageOptions, PredictOptions
from mtlsi.options.values import DEFAULT_MODEL
from mtlsi.plain_settings import use_plain_values
from mtlsi.train_command import train_from_command, train_parser
from mtlsi.version import __version__

if TYPE_CHECKING:
    from mtlsi.prediction.graph import GraphPredictor
    from mtlsi.prediction.predictor import Predictor

NETWORK_VERBS = ("demo", "train", "evaluate", "diagnose", "figures", "pack", "page", "benchmark", "export")
"""The verbs that run a network; ``predict`` runs exported ones too, which need no torch."""
SHARED_VERBS = ("train", "evaluate")
"""The verbs whose work several processes share."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code: 0 done, 1 done in part (images skipped), 2 a person's mistake.

    Of several processes that work together one says what is wrong, and all end with its code.
    """
    code = 1  # of a fault of ours, for which Python shows where it happened
    if arguments is None:
        garbage.pause()
        interrupts.note()
        streams.prepare()
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
    except Exception:
        if not interrupts.have_come():
            raise
        processes.say("mtlsi: stopped")
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
        raise
    finally:
        processes.leave(code)
    return code


def _main(arguments: Sequence[str]) -> int:
    try:
        _check_folder()
        _join(arguments)
        code = _run(build_parser(*arguments[:1]).parse_args(arguments), arguments)
        sys.stdout.flush()
        return code
    except MistakeError as error:
        processes.say(f"mtlsi: {one_line(str(error))}")
        return 2
    except Stopped as stop:
        processes.say(f"mtlsi: {one_line(str(stop))}")
        return stop.exit_code
    except KeyboardInterrupt:
        processes.say("mtlsi: stopped")
        return 130
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        processes.say(f"mtlsi: {one_line(refusal(error))}; put that right and give the command again")
        return 2
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        processes.say(
            "mtlsi: PyTorch is not installed; pip install torch. Exported graphs need none: --model model.onnx"
        )
        return 2
    except RuntimeError as error:
        if (lost := processes.lost_loader(error)) is not None:
            processes.say(f"mtlsi: {one_line(lost)}")
            return 2
        if not processes.lost_another(error):
            raise
        processes.say(f"mtlsi: {processes.LOST}")
        return 1


def _check_folder() -> None:
    """Raises ``MistakeError`` where the working folder is gone: relative paths lead nowhere, and torch ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise MistakeError("the working folder is gone; change to another one and give the command again") from error


def _join(arguments: Sequence[str]) -> None:
    """Meet the processes that the environment announces, before anything can go wrong in one of them alone."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    if verb in SHARED_VERBS:
        processes.check_tasks_of_slurm()
        processes.join()
    elif verb != "predict" and (number := processes.announced(["WORLD_SIZE"])) > 1:  # its processes share images out
        raise MistakeError(
            f"mtlsi {verb} works in one process, and the environment announces {number}; start it without a launcher"
        )


def _run(namespace: Namespace, arguments: Sequence[str]) -> int:
    """Run the verb that the command line, ``arguments``, names."""
    if namespace.subcommand in NETWORK_VERBS:
        from mtlsi.device import prepare_process  # lazy: imports torch

        prepare_process()
    if namespace.subcommand != "predict":  # which has a model to open first
        garbage.resume()
    if namespace.subcommand == "train":
        return train_from_command(namespace.train, arguments[1:])
    if namespace.subcommand == "data":
        chosen = namespace.data
        options, run, _ = DATA_VERBS[chosen.subcommand]
        return run(read_flags(chosen[chosen.subcommand], options))
    options, run, _ = VERBS[namespace.subcommand]
    return run(read_flags(namespace[namespace.subcommand], options))


def build_parser(verb: str | None = None) -> Parser:
    """The parser with one sub-command per verb; where ``verb`` is one, the others are there without their flags.

    A flag takes longer to make than to read, and a command line has one verb.
    """
    use_plain_values()
    parser = Parser(prog="mtlsi", description="Multi-task dense prediction with MTLSI-Net.")
    parser.add_argument("--version", action="version", version=f"mtlsi {__version__}")
    commands = parser.add_subcommands()
    alone = verb if verb in ("train", "data", *VERBS) else None
    commands.add_subcommand("train", train_parser() if alone in ("train", None) else Parser(), help="train a model")
    for name, (options, _, summary) in VERBS.items():
        commands.add_subcommand(name, _parser_of(options) if alone in (name, None) else Parser(), help=summary)
    data = Parser(description="Data sets on disk. Nothing is ever written into the folder that is read.")
    commands.add_subcommand("data", data, help="check a data set, derive labels, make it load fast")
    if alone not in ("data", None):
        return parser
    data_commands = data.add_subcommands()  # jsonargparse wants the outer command first
    for name, (options, _, summary) in DATA_VERBS.items():
        data_commands.add_subcommand(name, _parser_of(options), help=summary)
    return parser


def _parser_of(options: type) -> Parser:
    parser = Parser(description=options.__doc__)
    add_flags(parser, options)
    return parser


# ---- the other verbs


def _demo(options: DemoOptions) -> int:
    from mtlsi.demo import run_demo

    run_demo(options.out, iterations=options.iterations)
    return 0


def _study(options: StudyOptions) -> int:
    if options.list_commands:  # needs no torch
        if options.table or options.sheet or options.pdf:
            raise MistakeError("give one of --list, which only lists commands, and --table, --sheet or --pdf")
        from mtlsi.studies.plan import commands

        print("\n".join(commands(options)))
        return 0
    from mtlsi.studies.study import study_from_command

    return 1 if study_from_command(options).failed else 0


def _evaluate(options: EvaluateOptions) -> int:
    from mtlsi.evaluation.evaluate import evaluate_from_command

    evaluate_from_command(options)
    return 0


def _diagnose(options: DiagnoseOptions) -> int:
    from mtlsi.evaluation.diagnose import diagnose_from_command

    diagnose_from_command(options)
    return 0


def _figures(options: FiguresOptions) -> int:
    from mtlsi.figures.draw import figures_from_command

    figures_from_command(options)
    return 0


def _pack(options: PackOptions) -> int:
    from mtlsi.packing.pack import pack_from_command

    pack_from_command(options)
    return 0


def _predict(options: PredictOptions) -> int:
    from mtlsi.prediction.video_command import asks_for_video, video_from_command

    if asks_for_video(options):
        return video_from_command(options, _open_predictor)
    from mtlsi.prediction.calibration import read_camera
    from mtlsi.prediction.files import predict_paths

    predictor = _open_predictor(options)
    camera, scale = read_camera(options, predictor)
    outcome = predict_paths(
        options.images,
        predictor,
        options.out,
        options.tasks,
        camera=camera,
        scale=scale,
        write=options.write,
        recursive=options.recursive,
        overwrite=options.overwrite,
        num_workers=options.num_workers,
    )
    return 1 if outcome.failed else 0


def _open_predictor(options: PredictOptions) -> Predictor | GraphPredictor:
    try:
        if options.model.lower().endswith(".onnx"):
            from mtlsi.prediction.graph import predictor_from_command

            return predictor_from_command(options)
        from mtlsi.model.network import MTLSINet
        from mtlsi.prediction.tiles import TiledPredictor
        from mtlsi.run_folder import import_named_plugins

        import_named_plugins(options.plugin, options.model)
        model = MTLSINet.from_pretrained(options.model)
        _tell_of_best(options.model)
        return TiledPredictor(model, options.tiles, device=options.device, dtype=options.dtype, compile=options.compile)
    finally:
        garbage.resume()


def _export(options: ExportOptions) -> int:
    from mtlsi.exporting.export import export

    export(options)
    _tell_of_best(options.model)
    return 0


def _page(options: PageOptions) -> int:
    from mtlsi.page.server import page_from_command
    from mtlsi.run_folder import import_named_plugins

    for model in options.models or (DEFAULT_MODEL,):
        import_named_plugins(options.plugin, model)
        _tell_of_best(model)
    page_from_command(options)
    return 0


def _tell_of_best(model: str) -> None:
    from mtlsi.run_folder import note_of_best

    if (note := note_of_best(model)) is not None:
        processes.say(f"mtlsi: {note}")


def _boundary(options: BoundaryOptions) -> int:
    from mtlsi.evaluation.boundary_folders import score_folders

    score_folders(
        options.predictions,
        options.truth,
        boundary_protocol=options.boundary_protocol,
        max_dist=options.max_dist,
        num_thresholds=options.num_thresholds,
        nms=None if options.nms else False,
        thin=None if options.thin else False,
        mask_unknown=False if options.count_unknown else None,
        num_workers=options.num_workers,
        json_path=options.json_path,
        csv_path=options.csv_path,
        curve_path=options.curve_path,
    )
    return 0


def _benchmark(options: BenchmarkOptions) -> int:
    from mtlsi.benchmarking.benchmark import benchmark
    from mtlsi.run_folder import import_named_plugins

    import_named_plugins(options.plugin, options.model)
    benchmark(options)
    return 0


def _data_check(options: CheckOptions) -> int:
    from rich.console import Console

    from mtlsi.dataset_tools.check import check, print_report, write_report
    from mtlsi.io import check_writable

    _check_workers(options.num_workers)
    if options.json_path is not None:
        check_writable(options.json_path)
    report = check(options.root, num_workers=options.num_workers)
    print_report(report, Console())
    if options.json_path is not None:
        write_report(report, options.json_path)
    return 0 if report.sound else 1


def _data_derive(options: DeriveOptions) -> int:
    from mtlsi.dataset_tools.derive import Camera, Derivation, derive

    _check_workers(options.num_workers)
    if (options.focal_xy is None) != (options.centre_xy is None):
        raise MistakeError("--focal and --centre belong together; give both, in pixels of the depth map")
    camera = None
    if options.focal_xy is not None and options.centre_xy is not None:
        camera = Camera(options.focal_xy, options.centre_xy)
    wanted = {"boundary": options.boundary, "normals": options.normals, "saliency": bool(options.saliency)}
    derivation = Derivation(
        tuple(task for task, chosen in wanted.items() if chosen),
        camera=camera,
        depth_step_m=options.depth_step_m,
        salient=tuple(options.saliency),
    )
    derive(options.root, options.out, derivation, num_workers=options.num_workers)
    return 0


def _data_prepare(options: PrepareOptions) -> int:
    from mtlsi.dataset_tools.prepare import prepare

    _check_workers(options.num_workers)
    prepare(options.root, options.out, data=options.data, size_hw=options.size_hw, num_workers=options.num_workers)
    return 0


def _check_workers(num_workers: int) -> None:
    if num_workers < 0:
        raise MistakeError(f"--workers {num_workers}; expected 0 or more")


Verb = tuple[type, Callable[[Any], int], str]
"""The options, what runs them, and what the list of commands says."""
VERBS: dict[str, Verb] = {
    "demo": (DemoOptions, _demo, "show the packaged models on generated rooms, then train a small one"),
    "study": (StudyOptions, _study, "train many variants of a recipe and compare them in one table"),
    "evaluate": (EvaluateOptions, _evaluate, "measure a model on labelled images"),
    "diagnose": (DiagnoseOptions, _diagnose, "measure what each part of a trained MTLSI-Net contributes"),
    "figures": (FiguresOptions, _figures, "draw how a model was trained, and where it is right and wrong"),
    "pack": (PackOptions, _pack, "a trained model as a folder to share, with its card"),
    "predict": (PredictOptions, _predict, "predict every task for your images"),
    "export": (ExportOptions, _export, "a trained model as one file for other runtimes: ONNX"),
    "page": (PageOptions, _page, "a page in the browser: drop in a photo, see and read every task"),
    "boundary": (BoundaryOptions, _boundary, "score the boundary maps of any detector: ODS, OIS, AP"),
    "benchmark": (BenchmarkOptions, _benchmark, "measure what a model costs: operations, time, memory, growth"),
}
DATA_VERBS: dict[str, Verb] = {
    "check": (CheckOptions, _data_check, "what is there, and what is wrong"),
    "derive": (DeriveOptions, _data_derive, "boundaries, normals or saliency from other labels"),
    "prepare": (PrepareOptions, _data_prepare, "a copy that loads fast"),
}


if __name__ == "__main__":
    sys.exit(main())
