// The part of the page that shows a result: one card per task, one slider between photo and result for all of them, and
// the values under the pointer. Runs when the component is loaded; `element`, `props` and
// `watch` are given to it.
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text; // never markup: names of files and classes are a person's own
  return node;
};

const READERS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };
const SHORT = { semseg: "class", parsing: "part", normals: "normal", boundary: "boundary" };

const rounded = (value) => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2); // no -0.00

const words = (task, values) => {
  if (!values) return "…";
  if (task.kind === "classes") return task.classes[values[0]] ?? `class ${values[0]}`;
  if (task.kind === "distance") return `${values[0].toFixed(2)} m`;
  if (task.kind === "direction") return `(${values.map(rounded).join(", ")})`;
  if (task.kind === "strength") return values[0].toFixed(2);
  return values.map((v) => Number(v.toPrecision(3))).join(", ") + (task.unit ? ` ${task.unit}` : "");
};

const legendOf = (task) => {
  const legend = make("div", "legend");
  if (task.swatches) {
    for (const [colour, name] of task.swatches) {
      const entry = make("span", "entry");
      const chip = make("i", "chip");
      chip.style.background = colour;
      entry.append(chip, name);
      legend.append(entry);
    }
    return legend;
  }
  const bar = make("div", "bar");
  bar.style.background = `linear-gradient(to right, ${task.scale.join(",")})`;
  const marks = make("div", "marks");
  task.marks.forEach((mark) => marks.append(make("span", "", mark)));
  legend.classList.add("scale");
  legend.append(bar, marks);
  return legend;
};

class Viewer {
  constructor(root, result) {
    this.root = root;
    this.result = result;
    [this.width, this.height] = result.size;
    [this.columns, this.rows] = result.grid;
    this.folder = `results/${result.key}/`;
    this.cards = result.tasks.map((task) => this.card(task));
    this.tip = make("div", "tip");
    const cards = make("div", "cards");
    cards.append(...this.cards.map((card) => card.figure));
    root.replaceChildren(this.head(), cards, this.tip);
    this.wipe(0);
    this.cards.forEach((card) => this.load(card));
  }

  head() {
    const head = make("div", "head");
    const said = make("div", "said", this.result.said);
    this.place = make("div", "place", "Move over a picture to read its values; click to hold them.");
    const slider = make("label", "wipe");
    this.slider = make("input");
    Object.assign(this.slider, { type: "range", min: 0, max: 100, step: "any", value: 0 });
    this.slider.setAttribute("aria-label", "photo instead of result, from the left, in percent");
    this.slider.addEventListener("input", () => this.wipe(Number(this.slider.value)));
    slider.append("Result", this.slider, "Photo");
    const downloads = make("div", "downloads");
    for (const [name, label, title] of this.result.downloads) {
      const link = make("a", "", label);
      Object.assign(link, { href: this.folder + name, title, download: "" });
      downloads.append(link);
    }
    const text = make("div", "text");
    text.append(said, this.place);
    head.append(text, slider, downloads);
    return head;
  }

  card(task) {
    const figure = make("figure", "card");
    figure.dataset.task = task.name;
    const caption = make("figcaption");
    const value = make("output", "value");
    const larger = make("button", "larger", "⤢");
    larger.type = "button";
    larger.title = "larger, smaller";
    larger.addEventListener("click", () => figure.classList.toggle("wide"));
    caption.append(make("span", "title", task.title), value, larger);
    const view = make("div", "view");
    view.style.aspectRatio = `${this.width} / ${this.height}`;
    const photo = Object.assign(make("img", "photo"), { src: this.folder + "photo.png", alt: "photo", draggable: false });
    const map = Object.assign(make("img", "map"), {
      src: `${this.folder}${task.name}.png`, alt: task.title, draggable: false,
    });
    const divider = make("div", "divider");
    const mark = make("div", "mark");
    view.append(photo, map, divider, mark);
    figure.append(caption, view, legendOf(task));
    view.addEventListener("pointermove", (event) => this.held || this.read(event, view));
    view.addEventListener("pointerleave", () => this.held || this.leave());
    view.addEventListener("click", (event) => this.hold(event, view));
    divider.addEventListener("pointerdown", (event) => divider.setPointerCapture(event.pointerId));
    divider.addEventListener("pointermove", (event) => this.drag(event, view, divider));
    divider.addEventListener("click", (event) => event.stopPropagation());
    return { task, figure, view, map, divider, mark, value };
  }

  async load(card) {
    const { task } = card;
    const answer = await fetch(`${this.folder}${task.name}.bin`);
    if (!answer.ok) {
      this.place.textContent = await answer.text();
      return;
    }
    card.values = new READERS[task.type](await answer.arrayBuffer());
    this.root.dataset.ready = this.cards.filter((other) => other.values).length;
  }

  wipe(percent) {
    for (const { map, divider } of this.cards) {
      map.style.clipPath = `inset(0 0 0 ${percent}%)`;
      divider.style.left = `${percent}%`;
    }
  }

  drag(event, view, divider) {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const box = view.getBoundingClientRect();
    const percent = Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width));
    this.slider.value = percent;
    this.wipe(percent);
  }

  hold(event, view) {
    this.held = !this.held;
    this.root.classList.toggle("held", this.held);
    this.read(event, view);
  }

  leave() {
    this.root.classList.remove("reading");
    this.place.textContent = "Move over a picture to read its values; click to hold them.";
    this.cards.forEach(({ value }) => (value.textContent = ""));
  }

  // The values of every task at the pixel under the pointer, in each card's caption and beside the pointer.
  read(event, view) {
    const box = view.getBoundingClientRect();
    const across = Math.min(0.999999, Math.max(0, (event.clientX - box.left) / box.width));
    const down = Math.min(0.999999, Math.max(0, (event.clientY - box.top) / box.height));
    const column = Math.floor(across * this.columns), row = Math.floor(down * this.rows);
    const x = Math.floor(((2 * column + 1) * this.width) / (2 * this.columns));
    const y = Math.floor(((2 * row + 1) * this.height) / (2 * this.rows));
    this.root.classList.add("reading");
    this.place.textContent = `x ${x}, y ${y}${this.held ? " (held: click again to let go)" : ""}`;
    Object.assign(this.root.dataset, { x, y });
    this.tip.replaceChildren();
    for (const { task, values, value, mark } of this.cards) {
      const start = (row * this.columns + column) * task.channels;
      const raw = values && Array.from(values.subarray(start, start + task.channels));
      value.textContent = words(task, raw && raw.map((v) => (task.steps ? v / task.steps : v)));
      mark.style.left = `${(100 * (column + 0.5)) / this.columns}%`;
      mark.style.top = `${(100 * (row + 0.5)) / this.rows}%`;
      const line = make("div");
      line.append(make("span", "", SHORT[task.name] ?? task.title), make("b", "", value.textContent));
      this.tip.append(line);
    }
    const right = event.clientX + 16 + this.tip.offsetWidth > window.innerWidth;
    this.tip.style.left = `${event.clientX + (right ? -16 - this.tip.offsetWidth : 16)}px`;
    this.tip.style.top = `${Math.min(event.clientY + 16, window.innerHeight - this.tip.offsetHeight - 8)}px`;
  }
}

const show = () => {
  const root = element.querySelector(".mtlsi");
  const result = props.value;
  if (result?.key && root.dataset.key === result.key) return; // told again of what is shown
  root.className = "mtlsi";
  for (const key of Object.keys(root.dataset)) delete root.dataset[key];
  if (result?.tasks) {
    root.dataset.key = result.key;
    return new Viewer(root, result);
  }
  const note = make("div", result?.refused ? "note refused" : "note");
  if (result?.refused) note.setAttribute("role", "alert");
  note.append(result?.refused ?? "Drop a photo on the left, paste one, choose a file or use the webcam.");
  root.replaceChildren(note);
};
watch("value", show);
show();

// A photo that the browser cannot show, such as a TIFF, leaves no broken picture.
for (const [event, visibility] of [["error", "hidden"], ["load", "visible"]]) {
  document.addEventListener(event, ({ target }) => {
    if (target.matches?.("#photo img")) target.style.visibility = visibility;
  }, true);
}

// An image pasted anywhere on the page is a photo given to the file chooser.
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  const chooser = document.querySelector("#photo input[type=file]");
  if (!file || !chooser) return;
  event.preventDefault();
  const pasted = new DataTransfer();
  pasted.items.add(file);
  chooser.files = pasted.files;
  chooser.dispatchEvent(new Event("change", { bubbles: true }));
});
