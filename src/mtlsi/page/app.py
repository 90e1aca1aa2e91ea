"""The page itself: what is asked for on the left, what was predicted on the right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
import gradio.themes  # pyright: ignore[reportMissingImports]: an extra
from gradio.data_classes import ImageData  # pyright: ignore[reportMissingImports]
from gradio.utils import get_upload_folder  # pyright: ignore[reportMissingImports]

from mtlsi.errors import MistakeError
from mtlsi.page.models import AS_TRAINED, SCALES, Models
from mtlsi.page.results import CLOUD_POINTS, Result, Results
from mtlsi.page.uploads import check_uploaded, plain_stem, read_upload
from mtlsi.prediction.camera import TrainingCamera, View, assumed_view, multiplied, notable
from mtlsi.tasks import TASKS

HERE = Path(__file__).parent
QUEUED = 32
"""Photos that may wait; another one is told that the queue is full."""
AS_IN_TRAINING, BY_EXIF = "As in training", "By the photo's EXIF"
"""The cameras that a photo may be taken to be from, by what the page calls them."""
SWEEP_S, UPLOAD_AGE_S = 600, 3600
"""How often uploads are looked through, and how old they grow: seconds."""
STYLE = """
.gradio-container { max-width: 1500px !important; }
#title h1 { margin: 4px 0 0; font-size: 22px; } #title p { margin: 0; color: var(--body-text-color-subdued); }
.progress-text, .meta-text, .meta-text-center { font-size: 14px !important; font-weight: 600; }
"""
OFFERED = (
    ("arrays.npz", "Arrays .npz", "the exact array of every task, at the photo's size"),
    ("panel.png", "Panel .png", "the photo and every task with its legend"),
)
OFFERED_WITH_DEPTH = (
    ("points.ply", "Points .ply", "the point cloud, with colours"),
    ("points.glb", "Points .glb", "the point cloud, with colours"),
)


def build_page(models: Models, results: Results) -> gr.Blocks:
    """The page over ``models``; it keeps what it predicts in ``results``."""

    def predict(photo: ImageData | None, name: str, tasks: list[str], scale: str, camera: str) -> tuple[Any, Any]:
        if photo is None or photo.path is None:
            return None, None
        try:
            return _predict(models, results, photo, (name, tasks, scale, camera))
        except MistakeError as error:
            return {"refused": " ".join(str(error).split())}, None

    def offer_tasks(name: str) -> Any:
        try:
            return gr.update(**_task_choice(models.tasks(name)))
        except MistakeError as error:
            raise gr.Error(str(error), print_exception=False) from error

    first = models.names[0]
    with gr.Blocks(title="mtlsi", analytics_enabled=False, delete_cache=(SWEEP_S, UPLOAD_AGE_S)) as page:
        gr.HTML("<h1>mtlsi</h1><p>One photo in; every task out, from one network in one pass.</p>", elem_id="title")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                photo = _photo()
                name = gr.Dropdown(models.names, value=first, label="Model", interactive=len(models.names) > 1)
                tasks = gr.CheckboxGroup(**_task_choice(models.tasks(first)), label="Tasks")
                scale = gr.Radio(list(SCALES), value=AS_TRAINED, label="Working size")
                camera = gr.Radio(
                    [AS_IN_TRAINING, BY_EXIF], value=AS_IN_TRAINING, label="Camera, for metres and points"
                )
                again = gr.Button("Predict", variant="primary")
            with gr.Column(scale=4, min_width=320), gr.Tabs():
                with gr.Tab("Tasks"):
                    viewer = _drawn_by("viewer", "mtlsi")
                with gr.Tab("Point cloud"):
                    cloud = _drawn_by("cloud", "mtlsi-cloud")
        asked: dict[str, Any] = {
            "fn": predict, "inputs": [photo, name, tasks, scale, camera], "outputs": [viewer, cloud],
            "concurrency_limit": 1, "concurrency_id": "network", "trigger_mode": "always_last",
            "show_progress": "full",
        }  # fmt: skip
        gr.on([photo.input, photo.clear, tasks.input, scale.input, camera.input, again.click], **asked)
        name.change(offer_tasks, name, tasks, queue=False).then(**asked)
    page.queue(max_size=QUEUED)
    return page


def _photo() -> gr.Image:
    """An image as the browser sent it, undecoded: our own reader says what is wrong with it.

    Methods are replaced, not overridden: gradio writes a file beside the module of every class that extends one of its own.
    Nothing may be put out to it: gradio would make it anew, without them.
    """
    sources: Any = ["upload", "clipboard", "webcam"]
    photo: Any = gr.Image(label="Photo", sources=sources, height=280, buttons=[], elem_id="photo")
    move = photo.async_move_resource_to_block_cache

    async def move_uploads_alone(path: str | Path | None) -> str | None:
        if "://" in str(path):  # gradio would fetch it: no request leaves this machine
            raise gr.Error("an address; expected an uploaded image", print_exception=False)
        try:
            check_uploaded(path or "", get_upload_folder())
        except MistakeError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return await move(path)

    photo.preprocess = lambda payload: payload
    photo.async_move_resource_to_block_cache = move_uploads_alone
    return photo


def _drawn_by(script: str, name: str) -> gr.HTML:
    """What one of our scripts draws into an element of class ``name``, from the component's value."""
    source = (HERE / f"{script}.js").read_text(encoding="utf-8")
    return gr.HTML(None, html_template=f'<div class="{name}"></div>', js_on_load=source, elem_id=script)


def style() -> dict[str, Any]:
    """The look of the page, for gradio's ``theme`` and ``css``: the reader's own fonts, none to be fetched."""
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gradio.themes.Default(primary_hue="indigo", neutral_hue="slate", font=fonts[0], font_mono=fonts[1])
    return {"theme": theme, "css": STYLE + (HERE / "viewer.css").read_text(encoding="utf-8")}


def _predict(
    models: Models, results: Results, photo: ImageData, asked: tuple[str, list[str], str, str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The description of a new result for the viewer, and its point cloud."""
    assert photo.path is not None
    name, tasks, scale, camera = asked
    if not tasks:
        raise MistakeError("no task chosen; choose at least one")
    check_uploaded(photo.path, get_upload_folder())  # what is called a stream comes here unmoved
    given = photo.orig_name or Path(photo.path).name
    upload = read_upload(Path(photo.path), given)
    pixels, (height, width) = upload.pixels, upload.pixels.shape[:2]
    predictor = models.predictor(name, scale)
    start = time.perf_counter()
    prediction = predictor(pixels, [task for task in predictor.tasks if task in tasks])
    seconds = time.perf_counter() - start
    by_exif = upload.view if camera == BY_EXIF else None
    view = by_exif or assumed_view(predictor.training_camera, (height, width))
    if by_exif and predictor.training_camera:
        prediction = multiplied(prediction, predictor.training_camera.factor(by_exif.focal_px, (height, width)))
    result = Result(pixels, prediction, plain_stem(given), view.focal_px, predictor.classes, predictor.colours)
    key, has_depth = results.keep(result), result.distance_task() is not None
    worked = "{} x {}".format(*reversed(predictor.shown.fit((height, width))))
    said = [f"{width} x {height}", upload.changed, f"{name} at {worked}", f"{seconds:.2f} s"]
    if has_depth:
        said.append(_said_of_camera(camera, upload.view, predictor.training_camera, (height, width)))
    offered = OFFERED + (OFFERED_WITH_DEPTH if has_depth else ())
    shown = result.description() | {"key": key, "said": " · ".join(filter(None, said)), "downloads": offered}
    return shown, {"key": key, "focal": result.cloud_focal_px(CLOUD_POINTS)} if has_depth else None


def _said_of_camera(asked: str, view: View | None, training: TrainingCamera | None, size_hw: tuple[int, int]) -> str:
    """What is to be said of the photo's EXIF: that it was used, is missing, or would change the metres."""
    factor = 1.0 if view is None or training is None else training.factor(view.focal_px, size_hw)
    if asked != BY_EXIF:
        return f"the photo's EXIF, not used, would multiply the metres by {factor:.2f}" if notable(factor) else ""
    if view is None:
        return "no focal length in the photo's EXIF: the camera is taken to be as in training"
    if training is None:
        return f"points by {view.source}; this model names no training camera, so its metres are unchanged"
    return f"metres multiplied by {factor:.2f}, by {view.source}"


def _task_choice(tasks: tuple[str, ...]) -> dict[str, Any]:
    """The choices of the tasks' check boxes, all chosen."""
    return {"choices": [(TASKS[task].title.capitalize(), task) for task in tasks], "value": list(tasks)}
