// The page's state, and what changes it. The server answers for masks; what is kept lies there and nowhere else.

import { get, post, remove as requestRemove } from "./api.js";
import { tracePath } from "./mask.js";
import * as panels from "./panels.js";
import { View } from "./view.js";

const POLL = 2000; // milliseconds between two looks at what other pages have changed
const SETTLE = 120; // milliseconds that an image is shown before it is encoded: who leafs through encodes nothing

const byId = (id) => document.getElementById(id);
export const state = {
  images: [], counts: {}, labels: [], version: "", broken: new Set(),
  index: -1, label: "", kept: [], selected: null, hidden: false,
  steps: [], answer: null, path: null, waiting: false, // the object that is being clicked
  undo: [], drafts: new Map(), // what Ctrl+Z does, last thing last; objects that wait on other images
  latency: null,
};
export const view = new View(byId("canvas"), {
  point: (x, y, inside, event) => takeStep({ point: [x, y], inside }, event),
  box: (x0, y0, x1, y1, event) => takeStep({ box: [x0, y0, x1, y1] }, event),
});

const colorOf = (label) => panels.pickColor(Math.max(0, state.labels.indexOf(label)));

function draw() {
  view.scene = {
    kept: state.hidden ? [] : state.kept.map((mask) => ({ ...mask, selected: mask.id === state.selected })),
    current: state.steps.length ? { steps: state.steps, path: state.path, color: colorOf(state.label) } : null,
  };
  view.draw();
  panels.drawObject({ ...state, hasUndo: state.undo.length > 0 });
}

function drawPanels() {
  state.kept.forEach((mask) => { mask.color = colorOf(mask.label); });
  panels.markImages(state);
  panels.drawLabels(state, chooseLabel);
  panels.drawKept(state, { select, remove });
  draw();
}

// --- messages

let toastEnds;
function tell(line, wrong = false) {
  const toast = byId("toast");
  toast.textContent = line;
  toast.classList.toggle("wrong", wrong);
  toast.hidden = false;
  clearTimeout(toastEnds);
  toastEnds = setTimeout(() => { toast.hidden = true; }, wrong ? 8000 : 1800);
}

function setStatus(line, busy = false) {
  byId("status").textContent = line;
  byId("status").classList.toggle("busy", busy);
}

/** Run what asks the server; what goes wrong is one line on the page. */
const guarded = (action) => async (...given) => {
  try {
    return await action(...given);
  } catch (error) {
    tell(error.message, true);
    return undefined;
  }
};

// --- images

async function loadPicture(index) {
  const picture = new Image();
  picture.src = `/api/images/${index}/picture`;
  await picture.decode();
  return picture;
}

let next = { index: -1, picture: null }; // the picture that is fetched ahead

const open = guarded(async (index) => {
  if (index < 0 || index >= state.images.length || index === state.index) return;
  if (state.steps.length) state.drafts.set(state.index, state.steps);
  Object.assign(state, { index, kept: [], selected: null, steps: [], answer: null, path: null, waiting: false, undo: [] });
  byId("name").textContent = state.images[index];
  byId("size").textContent = `${index + 1} of ${state.images.length}`;
  byId("notice").hidden = true;
  history.replaceState(null, "", `#${index + 1}`);
  panels.showImage(index);
  view.show(null);
  drawPanels();
  setStatus("opening", true);
  try {
    const picture = next.index === index ? next.picture : loadPicture(index);
    picture.catch(() => {}); // what the server says of a broken image is better, and comes first
    const about = await get(`/api/images/${index}`);
    const loaded = await picture;
    if (state.index !== index) return;
    byId("size").textContent = `${index + 1} of ${state.images.length} · ${about.width} × ${about.height}`;
    state.stamp = next.index === index ? await next.stamp : about.stamp; // of the picture that is shown
    takeKept(about);
    view.show(loaded);
  } catch (error) {
    if (state.index === index) showBroken(index, error);
    return;
  }
  const draft = state.drafts.get(index);
  state.drafts.delete(index);
  if (draft) setSteps(draft);
  encode(index);
});

function showBroken(index, error) {
  if (error.status !== 0) state.broken.add(index);
  byId("notice").textContent = error.message;
  byId("notice").hidden = false;
  setStatus("");
  drawPanels();
}

async function encode(index) {
  setStatus("encoding", true);
  await new Promise((resolve) => setTimeout(resolve, SETTLE));
  if (state.index !== index) return;
  try {
    const { seconds } = await post(`/api/images/${index}/encode`);
    if (state.index !== index) return;
    setStatus(seconds < 0.05 ? "ready" : `ready · encoded in ${seconds.toFixed(1)} s`);
  } catch (error) {
    if (state.index === index) showBroken(index, error);
    return;
  }
  const ahead = index + 1;
  if (ahead < state.images.length && next.index !== ahead) {
    const stamp = get(`/api/images/${ahead}`).then((about) => about.stamp).catch(() => null);
    next = { index: ahead, picture: loadPicture(ahead), stamp };
    next.picture.catch(() => { next = { index: -1, picture: null }; });
    post(`/api/images/${ahead}/encode`).catch(() => {}); // said when that image is opened
  }
}

function takeKept(about) {
  state.kept = about.masks.map((mask) => ({ ...mask, path: mask.mask ? tracePath(mask.mask) : null }));
  state.counts[state.index] = state.kept.length;
  if (!state.kept.length) delete state.counts[state.index];
  if (!state.kept.some((mask) => mask.id === state.selected)) state.selected = null;
  drawPanels();
}

let refreshes = 0; // of answers that overtake one another the one that was asked for last counts

async function refreshKept() {
  const index = state.index, refresh = ++refreshes;
  const about = await get(`/api/images/${index}`);
  if (state.index === index && refresh === refreshes) takeKept(about);
}

// --- the object that is being clicked

function takeStep(step, event) {
  const before = state.steps;
  const kept = step.box ? before.filter((other) => !other.box) : before;
  state.undo.push(() => setSteps(before));
  state.selected = null;
  panels.drawKept(state, { select, remove });
  setSteps([...kept, step], event?.timeStamp);
}

let asking = null; // one question at a time: of clicks that come faster than answers only the last is asked

function setSteps(steps, since = performance.now()) {
  state.steps = steps;
  state.since = since;
  state.waiting = steps.length > 0;
  if (!steps.length) Object.assign(state, { answer: null, path: null });
  draw();
  if (steps.length) asking ??= ask().finally(() => { asking = null; });
}

async function ask() {
  while (state.waiting) {
    const { index, steps, since } = state;
    let answer;
    try {
      answer = await post(`/api/images/${index}/segment`, { steps, stamp: state.stamp });
    } catch (error) {
      if (state.steps !== steps) continue;
      Object.assign(state, { answer: null, path: null, waiting: false });
      tell(error.message, true);
      draw();
      continue;
    }
    if (state.index !== index || state.steps !== steps) continue;
    Object.assign(state, { answer, path: tracePath(answer.mask), waiting: false });
    draw();
    state.latency = performance.now() - since;
    setStatus(`mask in ${Math.round(state.latency)} ms`);
  }
}

const keep = guarded(async () => {
  while (state.waiting) await asking; // who is quick keeps the mask that is about to come
  if (!state.answer?.area || state.keeping) return;
  const { index, steps, label } = state;
  steps.uid ??= Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  state.keeping = true;
  try {
    const { mask } = await post(`/api/images/${index}/masks`, { steps, label, uid: steps.uid, stamp: state.stamp });
    if (state.index !== index) return;
    state.kept.push({ ...mask, path: tracePath(mask.mask) });
    state.undo = [async () => { await removeNow(mask.id); if (state.index === index) setSteps([...steps]); }];
    if (state.steps === steps) setSteps([]);
    drawPanels();
    tell(`${mask.label} kept and saved`);
    await refreshKept(); // with what other pages kept meanwhile
  } finally {
    state.keeping = false;
  }
});

function drop() {
  if (!state.steps.length) return;
  const before = state.steps;
  state.undo.push(() => setSteps(before));
  setSteps([]);
}

const undo = guarded(async () => { await state.undo.pop()?.(); draw(); });

// --- kept masks and labels

function select(id) {
  state.selected = state.selected === id ? null : id;
  if (state.selected !== null) state.hidden = false;
  drawPanels();
}

async function removeNow(id) {
  await requestRemove(`/api/masks/${id}`);
  await refreshKept();
}

const remove = guarded(async (id) => {
  try {
    await removeNow(id);
  } catch (error) {
    if (error.status === 404) await refreshKept(); // another page was faster
    throw error;
  }
  state.undo.push(async () => { await post(`/api/masks/${id}/restore`); await refreshKept(); });
  draw();
  tell("deleted · Ctrl+Z brings it back");
});

const chooseLabel = guarded(async (label) => {
  state.label = label;
  if (state.selected !== null) {
    await post(`/api/masks/${state.selected}/label`, { label });
    await refreshKept();
  }
  drawPanels();
});

const addLabel = guarded(async (name) => {
  const label = name.split(/\s+/).filter(Boolean).join(" ");
  if (!label) return;
  takeState(await post("/api/labels", { label }));
  await chooseLabel(label);
});

// --- other pages

function takeState({ version, counts, labels }) {
  Object.assign(state, { version, counts, labels });
  if (!labels.includes(state.label)) [state.label] = labels;
  drawPanels();
}

let away = false;
async function poll() {
  try {
    const changed = await get(`/api/state?version=${encodeURIComponent(state.version)}`);
    if (changed.counts) {
      takeState(changed);
      if (view.image) await refreshKept();
    }
    if (away) tell("vpexp answers again");
    away = false;
  } catch (error) {
    if (!away) tell(error.message, true);
    away = true;
  }
  setTimeout(poll, POLL);
}

// --- keys and buttons

const KEYS = {
  Enter: keep, " ": keep, Escape: () => { if (state.steps.length) drop(); else if (state.selected !== null) select(state.selected); },
  n: () => open(state.index + 1), d: () => open(state.index + 1), ArrowRight: () => open(state.index + 1),
  p: () => open(state.index - 1), a: () => open(state.index - 1), ArrowLeft: () => open(state.index - 1),
  h: () => { state.hidden = !state.hidden; drawPanels(); },
  f: () => view.fit(), l: () => byId("label-name").focus(), "?": () => byId("help").showModal(),
  Delete: () => { if (state.selected !== null) remove(state.selected); },
};
KEYS.Backspace = KEYS.Delete;

document.addEventListener("keydown", (event) => {
  if (byId("help").open) return;
  if (event.target === byId("label-name")) {
    if (event.key === "Escape") { event.target.value = ""; byId("canvas").focus(); }
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let action = KEYS[key];
  if (event.ctrlKey || event.metaKey) action = key === "z" ? undo : undefined;
  else if (/^[1-9]$/.test(key)) action = () => { if (state.labels[key - 1]) chooseLabel(state.labels[key - 1]); };
  if (!action) return;
  event.preventDefault();
  action();
});
byId("new-label").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("label-name"), name = field.value;
  field.value = "";
  byId("canvas").focus();
  await addLabel(name);
});
for (const [id, action] of Object.entries({
  keep, undo, drop, previous: KEYS.p, next: KEYS.n, fit: KEYS.f, hide: KEYS.h, "help-button": KEYS["?"],
})) byId(id).addEventListener("click", () => { action(); if (id !== "help-button") byId("canvas").focus(); });

// --- start

const start = guarded(async () => {
  const about = await get("/api/images");
  state.images = about.images;
  byId("model").textContent = about.model;
  byId("folder").textContent = `saved in ${about.folder}`;
  document.title = `${about.source} · vpexp`;
  panels.listImages(state.images, open);
  takeState(about);
  const asked = Number(location.hash.slice(1)) - 1;
  open(asked >= 0 && asked < state.images.length ? asked : 0);
  setTimeout(poll, POLL);
});
start();
