// The page put together: what is drawn when, what keys and buttons do, and what other pages have changed.

import { get, post } from "./api.js";
import * as images from "./images.js";
import * as kept from "./kept.js";
import { guarded, tell } from "./messages.js";
import * as object from "./object.js";
import * as panels from "./panels.js";
import * as proposals from "./proposals.js";
import { byId, labelIndex, page, redo, state, undo } from "./state.js";
import { View } from "./view.js";

export { state };

const POLL = 2000; // milliseconds between two looks at what other pages have changed
const RADII = [0.5, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 140, 200]; // of the brush, in pixels of the image
const ZOOM = 1.3;

export const view = new View(byId("canvas"), {
  point: (x, y, inside, event) => object.takeStep({ point: [x, y], inside }, event),
  box: (x0, y0, x1, y1, event) => object.takeStep({ box: [x0, y0, x1, y1] }, event),
  stroke: object.takeStroke,
  hover: proposals.hover,
  pick: (x, y) => {
    const proposed = kept.hit(proposals.listShown(), x, y), mask = kept.hit(state.hidden ? [] : state.kept, x, y);
    if (proposed && !mask) { Object.assign(state, { target: state.target === proposed ? null : proposed, selected: null }); drawPanels(); }
    else if (mask) { kept.select(mask.id); panels.showKept(state); } else if (state.selected !== null) kept.select(state.selected); else tell("there is no mask here");
  },
});

const NOTHING = [];
let drawn = { kept: null, proposals: null, lowest: null, list: NOTHING }; // what the lists of the scene were made of

function draw() {
  const { hidden, kept: all, steps, path, label, tool, radius, selected } = state;
  const base = steps.find((step) => step.base)?.base;
  const rest = hidden ? NOTHING : base ? all.filter((mask) => mask.id !== base.id) : all;
  const shown = proposals.listShown(), target = proposals.findTarget();
  const isSame = drawn.proposals === state.proposals && drawn.lowest === state.lowest && drawn.labels === state.labels && drawn.shown === state.proposing && drawn.found === state.steps[0]?.found;
  if (!isSame) {
    for (const mask of shown) mask.color = panels.pickColor(labelIndex(mask.label));
    drawn = { ...drawn, proposals: state.proposals, lowest: state.lowest, labels: state.labels, shown: state.proposing, found: state.steps[0]?.found, list: shown };
  }
  if (!base) drawn.kept = rest;
  else if (drawn.base !== base || drawn.all !== all) Object.assign(drawn, { kept: rest, base, all });
  const color = panels.pickColor(labelIndex(base?.label ?? label));
  view.scene = {
    kept: drawn.kept, proposals: drawn.list, tool, radius,
    lit: [...(hidden || base ? [] : all.filter((mask) => mask.id === selected)), ...(target ? [target] : [])],
    current: steps.length ? { steps, path, color } : null,
  };
  view.draw();
  panels.drawObject(state, object.choose);
  panels.drawProposals(state, shown, target);
  panels.drawTools(state);
}

const drawKept = () => panels.drawKept(state, { select: kept.select, remove: kept.remove });

function drawPanels() {
  panels.markImages(state);
  panels.drawLabels(state, { choose: kept.chooseLabel, rename: kept.renameLabel, drop: kept.dropLabel });
  panels.drawLearning(state.learning);
  drawKept();
  draw();
}

Object.assign(page, {
  draw, drawPanels, drawKept, takeState,
  show: (image) => view.show(image),
  isOpen: () => Boolean(view.image),
  getSize: () => [view.image.height, view.image.width],
  refreshKept: kept.refreshKept, settle: kept.settle, restoreNow: kept.restoreNow, removeNow: kept.removeNow, dress: kept.dress,
  refreshProposals: proposals.refreshProposals, nameTarget: proposals.nameTarget, findTarget: proposals.findTarget,
});

// --- other pages, and what is learnt

function takeState({ version, counts, done, labels, find, learning, model_version: model }) {
  const isNew = model !== state.modelVersion && state.images.length > 0 && state.version !== "";
  if (labels.join("\n") === state.labels.join("\n")) labels = state.labels; // nothing has to be drawn anew
  Object.assign(state, { version, counts, labels, learning, canFind: find, done: new Set(done), modelVersion: model });
  if (!labels.includes(state.label)) [state.label] = labels;
  byId("find-help").hidden = !find;
  state.kept = state.kept.map(kept.dress);
  drawPanels();
  if (!isNew) return;
  tell(learning?.news ?? "another model answers now");
  proposals.refreshProposals();
}

let away = false;
async function poll() {
  try {
    const changed = await get(`/api/state?version=${encodeURIComponent(state.version)}`);
    if (changed.counts) {
      const isRestarted = changed.version.split("-")[0] !== state.version.split("-")[0];
      takeState(changed);
      if (view.image && (isRestarted || changed.changes !== state.changes)) await kept.refreshKept();
    }
    if (away) tell("vpexp answers again");
    away = false;
  } catch (error) {
    if (!away) tell(error.message, true);
    away = true;
  }
  setTimeout(poll, POLL);
}

const steer = guarded(async (action) => takeState(await post(`/api/learning/${action}`)));

// --- keys and buttons

const use = (tool) => { state.tool = tool; draw(); };

function changeRadius(step) {
  const place = RADII.findIndex((radius) => radius >= state.radius);
  state.radius = RADII[Math.min(RADII.length - 1, Math.max(0, place + step))];
  draw();
}

const keep = () => (state.steps.length ? object.keep() : proposals.acceptOne());

function leave() {
  if (state.steps.length) object.drop();
  else if (state.selected !== null) kept.select(state.selected);
  else if (state.target) { state.target = null; draw(); }
  else use("point");
}

function pressTab(step) {
  if (object.isAmbiguous()) (step > 0 ? object.chooseNext : object.choosePrevious)();
  else proposals.tour(step);
}

const KEYS = {
  Enter: keep, " ": keep, Escape: leave,
  n: images.openNext, ArrowRight: images.openNext, p: images.openPrevious, ArrowLeft: images.openPrevious, d: images.toggleDone,
  a: proposals.acceptAll, x: proposals.reject, g: proposals.toggle, t: object.correct,
  c: () => use("point"), o: () => use("outside"), v: () => use("select"), b: () => use("brush"), e: () => use("eraser"),
  "[": () => changeRadius(-1), "]": () => changeRadius(1),
  k: () => kept.split(state.selected), Delete: () => kept.remove(state.selected),
  h: () => { state.hidden = !state.hidden; drawPanels(); },
  "+": () => view.zoom(ZOOM), "=": () => view.zoom(ZOOM), "-": () => view.zoom(1 / ZOOM), f: () => view.fit(),
  i: () => document.body.classList.toggle("listing"),
  l: () => byId("label-name").focus(), "?": () => byId("help").showModal(),
};
KEYS.Backspace = KEYS.Delete;

const isAtImage = () => [byId("canvas"), document.body].includes(document.activeElement); // elsewhere Tab leads on as usual

document.addEventListener("keydown", (event) => {
  if (byId("help").open || event.target.matches("select, #lowest")) return;
  if (event.target === byId("label-name")) {
    if (event.key === "Escape") { event.target.value = ""; byId("canvas").focus(); }
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let action = KEYS[key];
  if (event.ctrlKey || event.metaKey) action = { z: event.shiftKey ? redo : undo, y: redo }[key];
  else if (key === "Tab") action = isAtImage() && (object.isAmbiguous() || proposals.listShown().length) && (() => pressTab(event.shiftKey ? -1 : 1));
  else if (/^[1-9]$/.test(key)) action = () => { if (state.labels[key - 1]) kept.chooseLabel(state.labels[key - 1]); };
  if (!action) return;
  event.preventDefault();
  action();
});
byId("new-label").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("label-name"), name = field.value;
  field.value = "";
  byId("canvas").focus();
  await kept.addLabel(name);
});
for (const [id, action] of Object.entries({
  keep: object.keep, undo, redo, drop: object.drop, previous: KEYS.p, next: KEYS.n, done: KEYS.d, fit: KEYS.f, hide: KEYS.h, list: KEYS.i,
  accept: proposals.acceptOne, correct: object.correct, reject: KEYS.x, "accept-all": KEYS.a, propose: KEYS.g, "zoom-in": KEYS["+"], "zoom-out": KEYS["-"],
  smaller: KEYS["["], larger: KEYS["]"], split: KEYS.k, "learning-stop": () => steer(state.learning.stopped ? "start" : "stop"),
  "learning-undo": () => steer("undo"), "help-button": KEYS["?"],
})) byId(id).addEventListener("click", () => { action(); if (id !== "help-button") byId("canvas").focus(); });
for (const button of byId("tools").querySelectorAll("[data-tool]")) button.addEventListener("click", () => { use(button.dataset.tool); byId("canvas").focus(); });
byId("lowest").addEventListener("input", (event) => { state.lowest = Number(event.target.value); draw(); });
byId("lowest").addEventListener("change", () => byId("canvas").focus());
byId("order").addEventListener("change", (event) => { images.chooseOrder(event.target.value); byId("canvas").focus(); });

// --- start

const start = guarded(async () => {
  const about = await get("/api/images");
  byId("model").textContent = about.model;
  byId("folder").textContent = `saved in ${about.folder}`;
  byId("order-row").hidden = !about.orders;
  document.title = `${about.source} · vpexp`;
  panels.listImages(about.images, images.open);
  takeState(about);
  state.images = about.images;
  drawPanels();
  const asked = Number(location.hash.slice(1)) - 1;
  images.open(asked >= 0 && asked < state.images.length ? asked : 0);
  setTimeout(poll, POLL);
});
start();
