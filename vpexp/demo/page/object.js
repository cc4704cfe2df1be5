// The object that is being clicked or drawn: its steps (points, a box, strokes of the brush, a kept mask that is changed), the mask
// that they give, and what becomes of it.

import { changeMask, makeUid, post } from "./api.js";
import { drawStrokes, tracePath } from "./mask.js";
import { guarded, inTurn, setStatus, tell } from "./messages.js";
import { note, page, state } from "./state.js";

const isAsked = (step) => step.point || step.box || step.found; // what the model answers
const send = ({ found, ...step }) => (found ? { found: { box: found.prompt.box, point: found.prompt.points[0] } } : step);
const findBase = (steps) => steps.find((step) => step.base)?.base;

export function takeStep(step, event) {
  if (findBase(state.steps)) { tell("this mask is changed by brush and eraser: Enter saves it, Esc leaves it as it was"); return; }
  const found = step.point && !state.steps.length ? findCorrected(step) : null;
  const kept = step.box ? state.steps.filter((other) => !other.box && !other.found) : found ? [{ found }] : state.steps;
  const before = state.waiting ? undefined : state.mask?.counts ?? found?.mask.counts;
  if (found) takeLabel(found);
  state.selected = null;
  page.drawKept();
  changeSteps([...kept, step], { since: event?.timeStamp, before });
}

/** The proposal that a first click corrects: the selected one; or, as nothing begins with a point outside, the one below the mouse. */
const findCorrected = ({ inside }) => [state.target, inside ? null : state.hovered].find((mask) => mask && canCorrect(mask)) ?? null;
const canCorrect = ({ prompt }) => Boolean(prompt?.box && prompt.points?.length);

function takeLabel({ label }) {
  if (state.labels.includes(label)) state.label = label;
  page.drawPanels();
}

/** Take up the proposal that is meant, as the object that clicks go on with. */
export function correct() {
  const found = page.findTarget();
  if (state.steps.length) tell("keep or drop the object at hand first");
  else if (!found || !canCorrect(found)) tell("no proposal is selected: point at one, or press Tab");
  else { takeLabel(found); state.selected = null; changeSteps([{ found }]); }
}

/** Take up a stroke: of the object at hand, of the kept mask that is selected, or of a new object. */
export function takeStroke(line, add, event) {
  const chosen = state.kept.find((mask) => mask.id === state.selected), stroke = { stroke: { line, add, radius: state.radius } };
  if (!state.steps.length && !chosen && !add) { tell("there is nothing to erase: select a kept mask, or begin an object"); return; }
  if (chosen && !chosen.mask) { tell("this mask cannot be shown, and so not be changed", true); return; }
  const steps = state.steps.length || !chosen ? [...state.steps, stroke] : [{ base: chosen }, stroke];
  changeSteps(steps, { since: event?.timeStamp, before: state.waiting ? undefined : state.mask?.counts ?? chosen?.mask.counts });
}

export function changeSteps(steps, about) {
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

export const isAmbiguous = () => state.steps.length === 1 && Boolean(state.steps[0].point);

/** Take another of the three masks of a click: the one that pick names, given the number of the present one or 0. */
export const choose = guarded(async (pick) => {
  while (state.waiting) await asking;
  if (!isAmbiguous() || !state.answer?.scores.length) return;
  const [step] = state.steps;
  state.redo.length = 0;
  setSteps([{ ...step, mask: pick(step.mask ?? state.answer.choice) }]);
});
export const chooseNext = () => choose((now) => (now % 3) + 1);
export const choosePrevious = () => choose((now) => (now > 1 ? now - 1 : 3));

let asking = null; // one question at a time: of clicks that come faster than answers only the last is asked

/** @param about {since: when it was asked for, before: the mask that a click or a stroke may leave as it is} */
export function setSteps(steps, { since = performance.now(), before } = {}) {
  const asked = steps.filter(isAsked);
  Object.assign(state, { steps, since, before, unchanged: false, waiting: asked.length > 0 });
  if (!asked.length) Object.assign(state, { answer: null, mask: null, path: null });
  if (steps.length && !asked.length) showMask(null);
  page.draw();
  if (asked.length) asking ??= ask().finally(() => { asking = null; });
}

/** Show what an answer, or the kept mask that is changed, is with all strokes. */
function showMask(answer) {
  const { steps, before } = state, strokes = steps.filter((step) => step.stroke).map((step) => step.stroke);
  const from = answer?.mask ?? findBase(steps)?.mask ?? null;
  const shown = strokes.length ? drawStrokes(from, strokes, page.getSize()) : { mask: from, area: answer?.area, path: from && tracePath(from) };
  Object.assign(state, { answer: answer && { ...answer, area: shown.area }, ...shown, drawn: strokes.length > 0, waiting: false, unchanged: shown.mask?.counts === before });
  if (state.unchanged) tell("that changed nothing: the mask is as it was");
}

async function ask() {
  while (state.waiting) {
    const { index, steps, since } = state;
    let answer;
    try {
      answer = await post(`/api/images/${index}/segment`, { steps: steps.filter(isAsked).map(send), stamp: state.stamp });
    } catch (error) {
      if (state.steps !== steps) continue;
      Object.assign(state, { answer: null, mask: null, path: null, waiting: false });
      tell(error.message, true);
      page.draw();
      continue;
    }
    if (state.index !== index || state.steps !== steps) continue;
    showMask(answer);
    page.draw();
    state.latency = performance.now() - since;
    setStatus(`mask in ${Math.round(state.latency)} ms`);
  }
}

/** Keep the object, or save the kept mask that was changed. */
export const keep = inTurn(async () => {
  while (state.waiting) await asking; // who is quick keeps the mask that is about to come
  if (!state.steps.length) return;
  if (!state.path) { tell("there is no mask to keep: click inside the object, or draw it"); return; }
  const base = findBase(state.steps);
  await (base ? saveChanged(base) : keepNew());
});

async function keepNew() {
  const { index, steps, label, mask: pixels, drawn, answer, undo, redo } = state;
  steps.uid ??= makeUid();
  const given = drawn ? { mask: pixels } : { steps: steps.map(send), version: answer.version };
  let changed;
  try {
    changed = await post(`/api/images/${index}/masks`, { ...given, label, uid: steps.uid, stamp: state.stamp });
  } catch (error) {
    if (error.status === 409 && state.steps === steps && !drawn) setSteps(steps); // the model has learnt: show its mask
    throw error;
  }
  const [kept] = changed.masks;
  note({ undo, redo }, {
    undo: async () => {
      await page.removeNow(kept).catch((error) => { if (error.status !== 404) throw error; }); // it is gone already
      putSteps(index, [...steps]);
    },
    redo: async () => { await page.restoreNow(kept); putSteps(index, []); },
  });
  await page.settle(index, changed, (all) => [...all.filter(({ id }) => id !== kept.id), page.dress(kept)]);
  if ((state.left.get(index) ?? state).steps === steps) putSteps(index, []);
  page.drawPanels();
  tell(`${kept.label} kept and saved`);
}

async function saveChanged(base) {
  const { index, steps, mask, undo, redo } = state;
  const give = async (pixels, edited, now) => {
    const changed = await changeMask(base, "pixels", { mask: pixels, edited });
    putSteps(index, now);
    await page.settle(index, changed, (all) => all.map((one) => (one.id === base.id ? page.dress({ ...one, mask: pixels, edited }) : one)));
  };
  await give(mask, true, []);
  note({ undo, redo }, { undo: () => give(base.mask, base.edited, [...steps]), redo: () => give(mask, true, []) });
  tell(`${base.label} changed and saved`);
}

export function drop() {
  if (state.steps.length) changeSteps([]);
}
