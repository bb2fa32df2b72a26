// The page: what is typed and drawn goes out, what comes back is shown.

import {Drawing} from "./drawing.js";
import {Earlier} from "./earlier.js";
import {receivePictures} from "./incoming.js";
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

const at = (id) => document.getElementById(id);
const drawing = new Drawing(at("canvas"));
const live = new Live(sessionStorage.getItem("key") ?? "");
const earlier = new Earlier(at("history"), bringBack);
let size = {width: 128, height: 128};
let arrivals = []; // of pictures, in milliseconds
let latencies = [];
let shown = null; // the last picture: header, blob, prompt, url

function settings() {
  const {width, height} = size;
  return {
    prompt: at("prompt").value,
    seed: at("lock").checked ? at("seed").valueAsNumber : null,
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
  const blob = drawing.empty ? null : await drawing.blob(2 * size.width, 2 * size.height);
  if (!valid() || !at("prompt").value.trim()) return;
  live.update(settings());
  if (blob === null) {
    live.send({type: "control.clear"});
    live.generate();
  } else if (!live.sendImage(blob) && live.open) {
    changed = true; // the network is behind; by the next frame there may be a newer drawing
    await new Promise(requestAnimationFrame);
  }
}

// Settings that the server refuses would leave the ones before in force, and the picture would be made with those.
function valid() {
  const seed = at("seed");
  const fine = !at("lock").checked || seed.validity.valid;
  seed.setAttribute("aria-invalid", String(!fine));
  if (!fine) complain(`The seed must be a whole number from ${seed.min} to ${seed.max}.`);
  return fine;
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

receivePictures(at("file"), at("drop"), async (file) => {
  try {
    drawing.show(await createImageBitmap(file));
  } catch {
    complain("This file is no picture that the browser can read.");
  }
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

live.addEventListener("image.preview", ({detail}) => show(detail.blob, `unfinished: ${detail.asked.prompt}`));

live.addEventListener("image.completed", async ({detail}) => {
  const {time, prompt} = detail.asked;
  const latency = performance.now() - time;
  const url = await show(detail.blob, prompt);
  if (url === null) return;
  if (shown !== null) URL.revokeObjectURL(shown.url);
  shown = {...detail, prompt, url};
  tell(detail, latency);
  at("download").href = url;
  at("download").download = `pixart-${detail.seed}.${detail.output_format === "jpeg" ? "jpg" : detail.output_format}`;
  at("download").hidden = false;
  if (time > complained) at("problem").hidden = true;
  at("picture").dataset.input = String(detail.input);
  settle();
});

// Pictures a second over the last two seconds, and the median time from input to picture.
function tell({seed}, latency) {
  const now = performance.now();
  arrivals = [...arrivals.filter((time) => now - time < 2000), now];
  latencies = [...latencies.slice(-9), latency];
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
  earlier.keep(shown);
}, SETTLED);

function bringBack({prompt, seed, steps}) {
  at("prompt").value = prompt;
  at("seed").value = seed;
  at("lock").checked = true;
  at("steps").value = at("steps-shown").value = steps;
  ask();
}

let complained = 0; // when; a picture that was asked for before says nothing about what is wrong

function complain(message) {
  at("problem").textContent = message;
  at("problem").hidden = false;
  complained = performance.now();
}
live.addEventListener("error", ({detail}) => {
  complain(detail.error.message);
  // Refused only for the moment: the newest input is worth another try.
  if (["queue_full", "deadline", "not_ready", "rate_limit_exceeded"].includes(detail.error.code)) retry();
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
    if (at("key-form").contains(document.activeElement)) at("prompt").focus();
    at("key-form").hidden = true;
    if (detail.wanted || shown === null) ask();
  }
  if (detail.state === "waiting") await explain();
});

// A browser does not say why a WebSocket was refused; the HTTP side does.
async function explain() {
  const {key} = live;
  try {
    const response = await fetch("/v1/models", {headers: authorization()});
    if (response.status === 401 && key === live.key && !live.open) askForKey();
  } catch { /* the server is down, as the status says already */ }
}

function authorization() { return live.key ? {Authorization: `Bearer ${live.key}`} : {}; }

function askForKey() {
  live.rest(); // with the same key, another attempt would end the same way
  at("connection").textContent = live.key ? "this API key is not valid" : "an API key is needed";
  at("key").setAttribute("aria-invalid", String(Boolean(live.key)));
  const elsewhere = !at("key-form").hidden && !at("key-form").contains(document.activeElement); // maybe typing there
  at("key-form").hidden = false;
  if (!elsewhere) { at("key").focus(); at("key").select(); }
}

at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  live.key = at("key").value.trim();
  sessionStorage.setItem("key", live.key);
  at("connection").textContent = "trying the key…";
  live.rest();
  await learn(); // the first picture needs a size
  live.connect();
});

// Sizes and steps of the served model.
async function learn() {
  try {
    const response = await fetch("/v1/models", {headers: authorization()});
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
