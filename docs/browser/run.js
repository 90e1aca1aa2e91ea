// Runs what `mtlsi export` wrote: a picture's pixels in, finished predictions at its own size out.
import * as ort from "./ort/ort.wasm.min.mjs"; // the folder dist of onnxruntime-web

export const open = (model) => ort.InferenceSession.create(model);

/** The pixels (ImageData) of anything that a canvas can draw. */
export function pixelsOf(picture) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** The prediction of each of `tasks`, by default all: {name: {dims, data}}; dims begin with 1, height, width. */
export function predict(session, { data, width, height }, tasks = session.outputNames) {
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return session.run({ image: new ort.Tensor("uint8", rgb, [1, height, width, 3]) }, tasks);
}

/** A prediction as pixels: directions as red, green, blue; classes in colours; all else from dark to light. */
export function draw({ dims, data }) {
  const [, height, width, channels] = dims;
  const drawn = new ImageData(width, height);
  let [low, high] = [Infinity, -Infinity];
  for (const value of data) [low, high] = [Math.min(low, value), Math.max(high, value)];
  for (let i = 0; i < width * height; i++) {
    const grey = (255 * (data[i] - low)) / (high - low || 1);
    let colour = [grey, grey, grey];
    if (channels === 3) colour = [0, 1, 2].map((axis) => 127.5 * (data[3 * i + axis] + 1));
    else if (!(data instanceof Float32Array)) colour = [1, 2, 3].map((step) => (data[i] * 67 * step + 60) % 256);
    drawn.data.set([...colour, 255], 4 * i);
  }
  return drawn;
}
