// The point cloud of a result, turned by dragging. It draws the .glb file that the page gives away, each point as large as
// the pixel that it was seen in. Runs when the component is loaded; `element`, `props` and `watch` are given to it.
const VERTEX = `#version 300 es
in vec3 position; in vec3 colour; out vec3 shade;
uniform mat4 view; uniform vec2 lens; uniform float focal, pixels;
void main() {
  vec4 seen = view * vec4(position, 1.0);
  gl_Position = vec4(seen.xy * lens, -seen.z * 1.0004 - 0.02, -seen.z);
  gl_PointSize = clamp(1.4 * -position.z / focal * lens.y * pixels * 0.5 / -seen.z, 1.0, 40.0);
  shade = mix(12.92 * colour, 1.055 * pow(colour, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, colour));
}`;
const FRAGMENT = `#version 300 es
precision mediump float; in vec3 shade; out vec4 pixel;
void main() { pixel = vec4(shade, 1.0); }`;
const VIEW_ANGLE = (50 * Math.PI) / 180;

// Positions and colours of a .glb file of ours: one buffer, positions first.
const read = (content) => {
  const words = new DataView(content);
  const jsonLength = words.getUint32(12, true);
  const scene = JSON.parse(new TextDecoder().decode(new Uint8Array(content, 20, jsonLength)));
  if (!scene.accessors) return null;
  const count = scene.accessors[0].count;
  const start = 20 + jsonLength + 8;
  return {
    count,
    positions: new Float32Array(content, start, 3 * count),
    colours: new Uint16Array(content, start + 12 * count, 4 * count),
  };
};

class Cloud {
  constructor(canvas, points, focal) {
    Object.assign(this, { canvas, count: points.count, focal });
    const gl = (this.gl = canvas.getContext("webgl2", { antialias: false }));
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    this.buffer("position", program, points.positions, 3, gl.FLOAT, false, 12);
    this.buffer("colour", program, points.colours, 3, gl.UNSIGNED_SHORT, true, 8);
    this.at = (name) => gl.getUniformLocation(program, name);
    this.middle = Cloud.middle(points);
    this.reset();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  buffer(name, program, content, size, type, normalised, stride) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, content, gl.STATIC_DRAW);
    const place = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, type, normalised, stride, 0);
  }

  // The medians of a sample, which far-off points do not move.
  static middle({ count, positions }) {
    const step = Math.max(1, Math.floor(count / 2000));
    return [0, 1, 2].map((axis) => {
      const sample = [];
      for (let i = 0; i < count; i += step) sample.push(positions[3 * i + axis]);
      return sample.sort((a, b) => a - b)[sample.length >> 1];
    });
  }

  reset() {
    this.yaw = 0.28;
    this.pitch = 0.16;
    this.distance = 1.15 * Math.hypot(...this.middle);
    this.shift = [0, 0];
    this.draw();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      if (event.shiftKey || event.buttons === 2) {
        const metres = (2 * this.distance * Math.tan(VIEW_ANGLE / 2)) / canvas.clientHeight;
        this.shift = [this.shift[0] + event.movementX * metres, this.shift[1] - event.movementY * metres];
      } else {
        this.yaw += event.movementX / 200;
        this.pitch = Math.min(1.5, Math.max(-1.5, this.pitch + event.movementY / 200));
      }
      this.draw();
    });
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.distance *= Math.exp(Math.sign(event.deltaY) * 0.1);
      this.draw();
    }, { passive: false });
  }

  key(event) {
    const turns = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (!turns[event.key]) return;
    event.preventDefault();
    this.yaw += turns[event.key][0];
    this.pitch = Math.min(1.5, Math.max(-1.5, this.pitch + turns[event.key][1]));
    this.draw();
  }

  // Column by column: the cloud's middle to the origin, turned about y, then about x, then moved away.
  matrix() {
    const [cy, sy, cx, sx] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    const rows = [[cy, 0, sy], [sx * sy, cx, -sx * cy], [-cx * sy, sx, cx * cy]];
    const away = [...this.shift, -this.distance];
    const moved = rows.map((row, i) => away[i] - row.reduce((sum, value, k) => sum + value * this.middle[k], 0));
    return [...[0, 1, 2].flatMap((column) => [...rows.map((row) => row[column]), 0]), ...moved, 1];
  }

  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => {
      const { gl, canvas } = this;
      const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * devicePixelRatio));
      if (!width || !height) return;
      Object.assign(canvas, { width, height });
      gl.viewport(0, 0, width, height);
      gl.clearColor(0.07, 0.08, 0.1, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      const lens = 1 / Math.tan(VIEW_ANGLE / 2);
      gl.uniformMatrix4fv(this.at("view"), false, this.matrix());
      gl.uniform2f(this.at("lens"), (lens * height) / width, lens);
      gl.uniform1f(this.at("focal"), this.focal);
      gl.uniform1f(this.at("pixels"), height);
      gl.drawArrays(gl.POINTS, 0, this.count);
      canvas.dataset.drawn = this.count;
    });
  }
}

let shown = 0;
const show = async () => {
  const root = element.querySelector(".mtlsi-cloud");
  const result = props.value;
  const turn = ++shown;
  const say = (text) => {
    const note = document.createElement("div");
    note.className = "note";
    note.textContent = text;
    root.replaceChildren(note);
  };
  if (!result) return say("The point cloud of a photo is shown here once its depth has been predicted.");
  const answer = await fetch(`results/${result.key}/cloud.glb`);
  if (turn !== shown) return;
  if (!answer.ok) return say(await answer.text());
  const points = read(await answer.arrayBuffer());
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("aria-label", "point cloud; arrow keys turn it");
  if (!points) return say("No pixel of this photo has a depth.");
  if (!canvas.getContext("webgl2", { antialias: false })) return say("This browser has no WebGL 2, which draws the points.");
  const hint = document.createElement("div");
  hint.className = "hint";
  hint.textContent = "Drag to turn, scroll to come closer, shift and drag to move, double-click to begin again.";
  root.replaceChildren(canvas, hint);
  new Cloud(canvas, points, result.focal);
};
watch("value", show);
show();
