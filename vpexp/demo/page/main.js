// The page's state, and what changes it. The server answers for masks; what is kept lies there and nowhere else.

import { changeMask, deleteMask, get, loadPicture, makeUid, post } from "./api.js";
import { tracePath } from "./mask.js";
import * as panels from "./panels.js";
import { guarded, inTurn, setStatus, tell } from "./panels.js";
import { View } from "./view.js";

const POLL = 2000; // milliseconds between two looks at what other pages have changed
const SETTLE = 120; // milliseconds that an image is shown before it is encoded: who leafs through encodes nothing

const byId = (id) => document.getElementById(id);
export const state = {
  images: [], counts: {}, labels: [], version: "", broken: new Set(),
  index: -1, label: "", kept: [], selected: null, hidden: false,
  canFind: false, finding: new Set(), // images whose objects are being found
  steps: [], answer: null, path: null, waiting: false, unchanged: false, // the object that is being clicked
  undo: [], redo: [], left: new Map(), // what was done to this image, last thing last; the same, and steps, of others
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
  panels.drawObject(state, choose);
}

function drawPanels() {
  state.kept.forEach((mask) => { mask.color = colorOf(mask.label); });
  panels.markImages(state);
  panels.drawLabels(state, chooseLabel);
  panels.drawKept(state, { select, remove });
  draw();
}

// --- images

let next = { index: -1, picture: null }; // the picture that is fetched ahead

const open = guarded(async (index) => {
  if (index < 0 || index >= state.images.length || index === state.index) return;
  if (view.image) state.left.set(state.index, { steps: state.steps, undo: state.undo, redo: state.redo });
  Object.assign(state, { index, kept: [], selected: null, steps: [], answer: null, path: null, waiting: false, undo: [], redo: [] });
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
  const { steps = [], ...done } = state.left.get(index) ?? {};
  state.left.delete(index);
  Object.assign(state, done);
  setSteps(steps);
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

// --- undo and redo

/** Note what was done to an image; what was undone before cannot be redone any more. */
function note({ undo, redo }, change) {
  undo.push(change);
  redo.length = 0;
}

const travel = (from, to) => inTurn(async () => {
  const { [from]: past, [to]: future } = state, change = past.pop();
  if (!change) return;
  try {
    await change[from]();
    future.push(change);
  } catch (error) {
    if (error.status !== 404) past.push(change); // else another page was faster, and the change before it is next
    throw error;
  } finally {
    draw();
  }
});
const undo = travel("undo", "redo"), redo = travel("redo", "undo");

// --- the object that is being clicked

function takeStep(step, event) {
  const kept = step.box ? state.steps.filter((other) => !other.box) : state.steps;
  const before = state.waiting ? undefined : state.answer?.mask.counts;
  state.selected = null;
  panels.drawKept(state, { select, remove });
  changeSteps([...kept, step], { since: event?.timeStamp, before });
}

function changeSteps(steps, about) {
  let other = state.steps;
  const swap = () => {
    const now = state.steps;
    setSteps(other);
    other = now;
  };
  note(state, { undo: swap, redo: swap });
  setSteps(steps, about);
}

/** Put steps on an image, which may not be the one that is shown any more. */
function putSteps(index, steps) {
  if (state.left.has(index)) state.left.get(index).steps = steps;
  else if (state.index === index) setSteps(steps);
}

const isAmbiguous = () => state.steps.length === 1 && Boolean(state.steps[0].point);

/** Take another of the three masks of a click: the one that pick names, given the number of the present one or 0. */
const choose = guarded(async (pick) => {
  while (state.waiting) await asking;
  if (!isAmbiguous() || !state.answer?.scores.length) return;
  const [step] = state.steps;
  state.redo.length = 0;
  setSteps([{ ...step, mask: pick(step.mask ?? state.answer.choice) }]);
});
const chooseNext = () => choose((now) => (now % 3) + 1);
const choosePrevious = () => choose((now) => (now > 1 ? now - 1 : 3));

let asking = null; // one question at a time: of clicks that come faster than answers only the last is asked

/** @param about {since: when it was asked for, before: the mask that a click may leave as it is} */
function setSteps(steps, { since = performance.now(), before } = {}) {
  Object.assign(state, { steps, since, before, unchanged: false, waiting: steps.length > 0 });
  if (!steps.length) Object.assign(state, { answer: null, path: null });
  draw();
  if (steps.length) asking ??= ask().finally(() => { asking = null; });
}

async function ask() {
  while (state.waiting) {
    const { index, steps, since, before } = state;
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
    Object.assign(state, { answer, path: tracePath(answer.mask), waiting: false, unchanged: answer.mask.counts === before });
    if (state.unchanged) tell("that changed nothing: the mask is as it was");
    draw();
    state.latency = performance.now() - since;
    setStatus(`mask in ${Math.round(state.latency)} ms`);
  }
}

const keep = inTurn(async () => {
  while (state.waiting) await asking; // who is quick keeps the mask that is about to come
  if (!state.answer?.area) return;
  const { index, steps, label, undo, redo } = state;
  steps.uid ??= makeUid();
  const { mask } = await post(`/api/images/${index}/masks`, { steps, label, uid: steps.uid, stamp: state.stamp });
  note({ undo, redo }, {
    undo: async () => {
      await deleteMask(mask).catch((error) => { if (error.status !== 404) throw error; }); // it is gone already
      putSteps(index, [...steps]);
      await refreshKept();
    },
    redo: async () => { await restoreNow(mask); putSteps(index, []); },
  });
  if (state.index === index) state.kept.push({ ...mask, path: tracePath(mask.mask) });
  if ((state.left.get(index) ?? state).steps === steps) putSteps(index, []);
  drawPanels();
  tell(`${mask.label} kept and saved`);
  await refreshKept(); // with what other pages kept meanwhile
});

function drop() {
  if (state.steps.length) changeSteps([]);
}

/** Find and keep objects; what is clicked and kept meanwhile does not wait for it. */
const find = guarded(async () => {
  const { index, stamp, undo, redo, finding } = state, uid = makeUid();
  if (!state.canFind || !view.image || finding.has(index)) return;
  finding.add(index);
  draw();
  try {
    const { masks } = await post(`/api/images/${index}/find`, { uid, stamp });
    if (masks.length) note({ undo, redo }, { undo: () => removeNow({ uid }), redo: () => restoreNow({ uid }) });
    tell(masks.length ? `found ${masks.length} object${masks.length === 1 ? "" : "s"}` : "nothing new found");
  } finally {
    finding.delete(index);
    draw();
  }
  await refreshKept();
});

// --- kept masks and labels

function select(id) {
  state.selected = state.selected === id ? null : id;
  if (state.selected !== null) state.hidden = false;
  drawPanels();
}

async function removeNow(mask) {
  await deleteMask(mask).finally(refreshKept); // another page may have been faster
}

async function restoreNow(mask) {
  await changeMask(mask, "restore");
  await refreshKept();
}

const remove = inTurn(async (id) => {
  const mask = state.kept.find((other) => other.id === id), { undo, redo } = state;
  if (!mask) return;
  await removeNow(mask);
  note({ undo, redo }, { undo: () => restoreNow(mask), redo: () => removeNow(mask) });
  draw();
  tell("deleted · Ctrl+Z brings it back");
});

const relabel = inTurn(async (id, label, before) => {
  const mask = state.kept.find((other) => other.id === id), { undo, redo } = state;
  if (!mask || mask.label === label) return;
  const give = async (name, active) => {
    await changeMask(mask, "label", { label: name });
    state.label = active;
    await refreshKept();
  };
  await give(label, label);
  note({ undo, redo }, { undo: () => give(mask.label, before), redo: () => give(label, label) });
  draw();
});

async function chooseLabel(label) {
  const before = state.label;
  state.label = label;
  drawPanels();
  if (state.selected !== null) await relabel(state.selected, label, before);
}

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
  f: () => view.fit(), g: find, l: () => byId("label-name").focus(), "?": () => byId("help").showModal(),
  Delete: () => { if (state.selected !== null) remove(state.selected); },
};
KEYS.Backspace = KEYS.Delete;

const isAtImage = () => [byId("canvas"), document.body].includes(document.activeElement); // elsewhere Tab leads on as usual

document.addEventListener("keydown", (event) => {
  if (byId("help").open) return;
  if (event.target === byId("label-name")) {
    if (event.key === "Escape") { event.target.value = ""; byId("canvas").focus(); }
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let action = KEYS[key];
  if (event.ctrlKey || event.metaKey) action = { z: event.shiftKey ? redo : undo, y: redo }[key];
  else if (key === "Tab") action = isAmbiguous() && isAtImage() && (event.shiftKey ? choosePrevious : chooseNext);
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
  keep, undo, redo, drop, find, previous: KEYS.p, next: KEYS.n, fit: KEYS.f, hide: KEYS.h, "help-button": KEYS["?"],
})) byId(id).addEventListener("click", () => { action(); if (id !== "help-button") byId("canvas").focus(); });

// --- start

const start = guarded(async () => {
  const about = await get("/api/images");
  state.images = about.images;
  state.canFind = about.find;
  byId("find").hidden = byId("find-help").hidden = !about.find;
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
