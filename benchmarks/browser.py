"""An exported model in a browser beside onnxruntime in Python: the largest difference of each task, and the time.

    npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
    python benchmarks/browser.py model.onnx photo.png --runtime package/dist [--browser chromium]

Serves docs/browser with the model on 127.0.0.1, opens it in a headless Chromium, and takes back what its ``run.js`` gives.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
from rich.console import Console
from rich.table import Table

from mtlsi.exporting.compare import UNITS, difference
from mtlsi.prediction.graph import GraphPredictor
from mtlsi.prediction.images import read_image
from mtlsi.tasks import TASKS

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAGE = """<!doctype html><script type="module">
import { open, pixelsOf, predict } from "./run.js";
const send = (query, body) => fetch(`result?${new URLSearchParams(query)}`, { method: "POST", body });
try {
  const session = await open("model.onnx");
  const pixels = pixelsOf(await createImageBitmap(await (await fetch("photo")).blob()));
  await predict(session, pixels);
  const begun = performance.now();
  const predictions = await predict(session, pixels);
  const took = performance.now() - begun;
  for (const [name, { data }] of Object.entries(predictions)) await send({ name }, data);
  await send({ took }, "");
} catch (error) { await send({ error: error.message }, ""); }
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """The page's files, and a box for what it sends back."""

    def __init__(self, *arguments: object, files: dict[str, Path], runtime: Path, results: dict, done: threading.Event):
        self.files, self.runtime, self.results, self.done = files, runtime, results, done
        super().__init__(*arguments)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """Where a file of the page lies."""
        name = urlsplit(path).path.lstrip("/")
        return str(self.files.get(name, self.runtime / Path(name).name))

    def do_POST(self) -> None:
        """Keep a prediction's bytes, or the time or the error that comes last."""
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.results |= {query["name"]: body} if "name" in query else query
        self.send_response(204)
        self.end_headers()
        if "name" not in query:
            self.done.set()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Read the command line, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photo", type=Path, help="a PNG file: of others the browser may decode other pixels")
    parser.add_argument("--runtime", type=Path, required=True, help="the folder dist of onnxruntime-web")
    parser.add_argument("--browser", default="chromium")
    options = parser.parse_args()
    reader = GraphPredictor(options.model, num_threads=1)
    expected = reader(read_image(options.photo))
    results = in_browser(options.model, options.photo, options.runtime, options.browser)
    if "error" in results:
        raise SystemExit(f"the browser says: {results['error']}")
    table = Table("task", "mean difference", "largest", "in", title=f"{float(results['took']):.0f} ms in the browser")
    for task, array in expected.items():
        found = np.frombuffer(results[task], array.dtype).reshape(array.shape)
        mean, largest = difference(task, found, array)
        table.add_row(task, f"{mean:.2g}", f"{largest:.2g}", UNITS[TASKS[task].kind])
    Console().print(table)


def in_browser(model: Path, photo: Path, runtime: Path, browser: str) -> dict:
    """What the page sends back: each task's bytes, and ``took`` in ms or ``error``."""
    done, results = threading.Event(), {}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "check.html"
        page.write_text(PAGE)
        script = Path(__file__).parents[1] / "docs/browser/run.js"
        files = {"check.html": page, "run.js": script, "model.onnx": model, "photo": photo}
        handler = partial(Handler, files=files, runtime=runtime, results=results, done=done)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/check.html"
            command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", "--remote-debugging-port=0", address]
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                if not done.wait(600):
                    raise SystemExit("the browser gave no answer in ten minutes")
            finally:
                running.terminate()
                running.wait()
                server.shutdown()
    return results


if __name__ == "__main__":
    main()
