// The page: what is typed and drawn goes out, what comes back is shown.

import {Drawing} from "./drawing.js";
import {Live} from "./live.js";

const EXAMPLES = [
  "a red apple on a blue background",
  "a panda on a purple background",
  "a hamburger on a brown background",
  "a rocket on a yellow background",
  "a guitar on a red background",
  "a castle on a pink background",
];
const TYPING_PAUSE = 150; // milliseconds
const SETTLED = 500; // after the last picture, it goes into the history and is announced
const MOST_EARLIER = 24;

const at = (id) => document.getElementById(id);
const drawing = new Drawing(at("canvas"));
const live = new Live(settings, sessionStorage.getItem("key") ?? "");
let size = {width: 128, height: 128};
let arrivals = []; // of pictures, in milliseconds
let latencies = [];
let shown = null; // the last picture: header, blob, prompt, url

function settings() {
  const {width, height} = size;
  return {
    prompt: at("prompt").value,
    seed: at("lock").checked ? at("seed").valueAsNumber || 0 : null,
    steps: Number(at("steps").value),
    size: `${width}x${height}`,
    control: {type: drawing.type, strength: Number(at("strength").value)},
    previews: at("previews").checked ? 7 : 0,
  };
}

// --- asking -------------------------------------------------------------------------------------------------------

let asking = false;
let changed = false; // since what is being asked

// Asks for a picture of what there is now. Packing a drawing takes a moment, so it is done one at a time, in order:
// the last thing sent is always the newest.
async function ask() {
  changed = true;
  if (asking) return;
  asking = true;
  try {
    while (changed) {
      changed = false;
      await askOnce();
    }
  } finally {
    asking = false;
  }
}

async function askOnce() {
  if (!at("prompt").value.trim()) return;
  if (drawing.empty) {
    live.update(settings());
    live.send({type: "control.clear"});
    live.generate();
    return;
  }
  const blob = await drawing.blob(2 * size.width, 2 * size.height);
  live.update(settings());
  if (!live.sendImage(blob) && live.open) {
    changed = true; // the network is behind; by the next frame there may be a newer drawing
    await new Promise(requestAnimationFrame);
  }
}

function later(action, pause) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(action, pause); };
}

const askSoon = later(ask, TYPING_PAUSE);
let frame = null;
drawing.addEventListener("change", () => {
  at("canvas-hint").hidden = !drawing.empty;
  frame ??= requestAnimationFrame(() => { frame = null; ask(); });
});

at("prompt").addEventListener("input", askSoon);
at("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
for (const id of ["steps", "strength"]) {
  at(id).addEventListener("input", () => { at(`${id}-shown`).value = at(id).value; askSoon(); });
}
for (const id of ["seed", "lock", "previews"]) at(id).addEventListener("input", askSoon);
at("another").addEventListener("click", () => {
  at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  at("lock").checked = true;
  ask();
});

for (const prompt of EXAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = prompt;
  button.addEventListener("click", () => { at("prompt").value = prompt; ask(); });
  at("examples").append(button);
}

// --- drawing ------------------------------------------------------------------------------------------------------

function choose(erasing) {
  drawing.erasing = erasing;
  at("brush").setAttribute("aria-pressed", String(!erasing));
  at("eraser").setAttribute("aria-pressed", String(erasing));
}
at("brush").addEventListener("click", () => choose(false));
at("eraser").addEventListener("click", () => choose(true));
at("width").addEventListener("input", () => { drawing.width = Number(at("width").value); });
at("undo").addEventListener("click", () => drawing.undo());
at("clear").addEventListener("click", () => { choose(false); drawing.clear(); });

async function take(file) {
  try {
    drawing.show(await createImageBitmap(file));
  } catch {
    complain("This file is no picture that the browser can read.");
  }
}
at("file").addEventListener("change", () => { if (at("file").files[0]) take(at("file").files[0]); at("file").value = ""; });
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) take(file);
});
document.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});

// --- showing ------------------------------------------------------------------------------------------------------

let turns = 0;
let displayed = 0;

// Decoded before it takes the last one's place, so that nothing flickers. Null if a later one was quicker.
async function show(blob, alt) {
  const turn = ++turns;
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  await image.decode();
  if (turn < displayed) {
    URL.revokeObjectURL(url);
    return null;
  }
  displayed = turn;
  const picture = at("picture");
  if (picture.src !== shown?.url) URL.revokeObjectURL(picture.src);
  picture.src = url;
  picture.alt = alt;
  picture.hidden = false;
  at("picture-hint").hidden = true;
  return url;
}

live.addEventListener("image.preview", ({detail}) => show(detail.blob, `unfinished: ${at("prompt").value}`));

live.addEventListener("image.completed", async ({detail}) => {
  const prompt = at("prompt").value;
  const latency = live.latency(detail.input);
  const url = await show(detail.blob, prompt);
  if (url === null) return;
  if (shown !== null) URL.revokeObjectURL(shown.url);
  shown = {...detail, prompt, url};
  tell(detail, latency);
  at("download").href = url;
  at("download").download = `pixart-${detail.seed}.${detail.output_format === "jpeg" ? "jpg" : detail.output_format}`;
  at("download").hidden = false;
  at("problem").hidden = true;
  at("picture").dataset.input = String(detail.input);
  settle();
});

// Pictures a second over the last two seconds, and the median time from input to picture.
function tell({seed}, latency) {
  const now = performance.now();
  arrivals = [...arrivals.filter((time) => now - time < 2000), now];
  if (latency !== null) latencies = [...latencies.slice(-9), latency];
  const figures = [`${Math.round(median(latencies))} ms`, `seed ${seed}`];
  if (arrivals.length > 2) {
    figures.unshift(`${((arrivals.length - 1) / (now - arrivals[0]) * 1000).toFixed(1)} pictures/s`);
  }
  at("figures").value = figures.join(" · ");
}

function median(values) { return [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0; }

const settle = later(() => {
  if (live.pending || shown === null || shown.kept) return;
  shown.kept = true;
  at("announcer").textContent = `Picture of ${shown.prompt}, seed ${shown.seed}`;
  keep(shown);
}, SETTLED);

function keep({blob, prompt, seed, steps}) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.src = URL.createObjectURL(blob);
  image.alt = "";
  button.type = "button";
  button.title = `${prompt}, seed ${seed}`;
  button.setAttribute("aria-label", `Bring back ${prompt}, seed ${seed}`);
  button.append(image);
  button.addEventListener("click", () => {
    at("prompt").value = prompt;
    at("seed").value = seed;
    at("lock").checked = true;
    at("steps").value = at("steps-shown").value = steps;
    ask();
  });
  const item = document.createElement("li");
  item.append(button);
  at("history").prepend(item);
  while (at("history").children.length > MOST_EARLIER) {
    URL.revokeObjectURL(at("history").lastElementChild.querySelector("img").src);
    at("history").lastElementChild.remove();
  }
}

function complain(message) {
  at("problem").textContent = message;
  at("problem").hidden = false;
}
live.addEventListener("error", ({detail}) => {
  complain(detail.error.message);
  // Refused only because the server is busy or still loading: the newest input is worth another try.
  if (["queue_full", "deadline", "not_ready"].includes(detail.error.code)) retry();
});
const retry = later(ask, 1000);

// --- the connection -----------------------------------------------------------------------------------------------

const WORDS = {
  connecting: "connecting…",
  open: "connected",
  asleep: "paused; draw or type to go on",
  taken: "this session goes on in another window; reload to take it back",
};

live.addEventListener("state", async ({detail}) => {
  const connection = at("connection");
  connection.dataset.state = detail.state;
  connection.textContent =
    WORDS[detail.state] ?? `connection lost${detail.reason ? ` (${detail.reason})` : ""}; trying again in ${Math.ceil(detail.seconds)} s`;
  if (detail.state === "open") {
    at("key-form").hidden = true;
    if (detail.wanted || shown === null) ask();
  }
  if (detail.state === "waiting") await explain();
});

// A browser does not say why a WebSocket was refused; the HTTP side does.
async function explain() {
  try {
    const response = await fetch("/v1/models", {headers: live.key ? {Authorization: `Bearer ${live.key}`} : {}});
    if (response.status === 401) {
      at("key-form").hidden = false;
      at("connection").textContent = "an API key is needed";
    }
  } catch { /* the server is down, as the status says already */ }
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  live.key = at("key").value.trim();
  sessionStorage.setItem("key", live.key);
  at("connection").textContent = "trying the key…";
  learn();
});

// Sizes and steps of the served model.
async function learn() {
  try {
    const headers = live.key ? {Authorization: `Bearer ${live.key}`} : {};
    const response = await fetch("/v1/models", {headers});
    if (!response.ok) return;
    const [model] = (await response.json()).data;
    at("model").textContent = model.id;
    at("size").replaceChildren(...model.limits.sizes.map((each) => new Option(each.replace("x", " × "), each)));
    at("size").value = model.limits.default_size;
    const [low, high] = model.limits.steps;
    Object.assign(at("steps"), {min: low, max: high, value: model.limits.default_steps});
    at("steps-shown").value = model.limits.default_steps;
    resize();
  } catch { /* the connection's status tells */ }
}

function resize() {
  const [width, height] = at("size").value.split("x").map(Number);
  size = {width, height};
  drawing.resize(width, height);
}
at("size").addEventListener("change", () => { resize(); ask(); });

await learn();
live.connect();
