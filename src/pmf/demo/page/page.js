// Runs model.onnx in the browser: noise of (seed, index) in, bytes out, one image after the other.

import * as ort from "./onnxruntime/ort.wasm.min.mjs";
import { imageNoise } from "./noise.js";

const FRAMES = 8; // of the strip
const SMALL = 64; // pixels; smaller images are shown with square pixels

const find = (id) => document.getElementById(id);
const say = (text) => (find("status").textContent = text);

ort.env.wasm.numThreads = 1; // more would need headers that plain file servers do not send
ort.env.wasm.wasmPaths = new URL("./onnxruntime/", import.meta.url).href;

/** Noise on the great circle through two, as pmf's Generator.interpolate has it; `fraction` is in [0, 1]. */
function noiseBetween(a, b, fraction) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(Math.min(Math.max(cosine, -1), 1));
  if (angle === 0) return a;
  const ofA = Math.sin((1 - fraction) * angle) / Math.sin(angle);
  const ofB = Math.sin(fraction * angle) / Math.sin(angle);
  return a.map((value, i) => ofA * value + ofB * b[i]);
}

/** One image as the pixels of a canvas. */
async function generate(session, model, noise, choice) {
  const [channels, height, width] = model.shape;
  const inputs = {
    noise: new ort.Tensor("float32", noise, [1, channels, height, width]),
    label: new ort.Tensor("int64", [BigInt(choice.label)], [1]),
    omega: new ort.Tensor("float32", [choice.omega], [1]),
    interval: new ort.Tensor("float32", choice.interval, [1, 2]),
  };
  const given = Object.fromEntries(model.inputs.map((name) => [name, inputs[name]]));
  const { image } = await session.run(given);
  const pixels = new ImageData(width, height);
  const plane = height * width;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = image.data[(channels === 3 ? c * plane : 0) + i];
    pixels.data[4 * i + 3] = 255;
  }
  return pixels;
}

function canvasesIn(place, count, model) {
  const [, height, width] = model.shape;
  const made = Array.from({ length: count }, (_, i) => {
    const canvas = place.children[i] ?? document.createElement("canvas");
    canvas.setAttribute("role", "img");
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    return canvas;
  });
  place.replaceChildren(...made);
  return made;
}

/** What the controls say; null while one of them holds no valid value. */
function readChoice() {
  const controls = ["seed", "count", "t_min", "t_max", "second-seed"];
  if (!controls.every((id) => find(id).closest("[hidden]") || (find(id).value !== "" && find(id).checkValidity())))
    return null;
  const number = (id) => Number(find(id).value);
  return {
    label: number("label"),
    seed: number("seed"),
    secondSeed: number("second-seed"),
    count: number("count"),
    omega: number("omega"),
    interval: [number("t_min"), number("t_max")],
  };
}

let newest = 0;
let running = Promise.resolve();

/** Draws everything anew; a later call ends this one between two images. */
async function drawAll(session, model, order) {
  const choice = readChoice();
  if (choice === null) {
    say("A number is missing or out of its range.");
    return;
  }
  if (choice.interval[0] > choice.interval[1]) {
    say("The guidance interval ends before it begins.");
    return;
  }
  const values = model.shape.reduce((a, b) => a * b);
  const name = model.class_names[choice.label];
  const grid = canvasesIn(find("grid"), choice.count, model).map((canvas, i) => ({
    canvas,
    told: `${name}, seed ${choice.seed}, image ${i}`,
    noise: () => imageNoise(choice.seed, i, values),
  }));
  const start = imageNoise(choice.seed, 0, values);
  const end = imageNoise(choice.secondSeed, 0, values);
  const strip = canvasesIn(find("strip"), FRAMES, model).map((canvas, i) => ({
    canvas,
    told: `${name}, ${i} of ${FRAMES - 1} parts of the way from seed ${choice.seed} to ${choice.secondSeed}`,
    noise: () => noiseBetween(start, end, i / (FRAMES - 1)),
  }));
  const began = performance.now();
  for (const { canvas, told, noise } of [...grid, ...strip]) {
    const pixels = await generate(session, model, noise(), choice);
    if (order !== newest) return;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.setAttribute("aria-label", told);
    await new Promise((resume) => setTimeout(resume)); // the browser shows it
    if (order !== newest) return;
  }
  const each = (performance.now() - began) / (grid.length + strip.length);
  say(`Done: ${Math.round(each)} ms for an image, on this machine.`);
}

function fillControls(model) {
  find("about").textContent = `Weights: ${model.weights}. Everything runs in this browser; nothing is sent anywhere.`;
  find("label").replaceChildren(...model.class_names.map((name, label) => new Option(name, label)));
  find("omega").value = model.sampling.omega;
  [find("t_min").value, find("t_max").value] = model.sampling.interval;
  for (const name of ["omega", "interval"])
    document.querySelector(`.${name}`).hidden = !model.inputs.includes(name);
  const side = model.shape[2];
  for (const place of document.querySelectorAll(".images")) {
    place.classList.toggle("small", side <= SMALL);
    place.style.setProperty("--side", `${Math.max(80, Math.min(side, 256))}px`);
  }
}

async function start() {
  const model = await (await fetch("model.json")).json();
  fillControls(model);
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const redraw = () => {
    find("omega-value").textContent = find("omega").value;
    const order = ++newest;
    say("Generating.");
    // A session runs one batch at a time.
    running = running.then(() => order === newest && drawAll(session, model, order)).catch((error) => say(String(error)));
  };
  document.addEventListener("input", redraw);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  redraw();
}

start().catch((error) => say(`The model could not be loaded: ${error}`));
