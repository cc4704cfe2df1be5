// What the model proposes: shown, accepted, rejected. Nothing of it is kept that was not accepted.

import { get, makeUid, post } from "./api.js";
import { tracePath } from "./mask.js";
import { guarded, inTurn, tell } from "./messages.js";
import { note, page, state } from "./state.js";
import { hit } from "./kept.js";

let known = new Map(); // by run lengths, as they were last: a label that was chosen for one stays
let refreshes = 0;

/** Ask for what is proposed for the image that is shown. */
export const refreshProposals = guarded(async () => {
  const { index } = state, refresh = ++refreshes;
  if (!state.canFind || !state.proposing || !page.isOpen()) return;
  const isFirst = !state.proposals.length;
  state.finding = isFirst;
  page.draw();
  try {
    const { masks, threshold, version } = await get(`/api/images/${index}/proposals`);
    if (state.index !== index || refresh !== refreshes) return;
    const isMoved = state.lowest !== state.threshold && version === state.proposedVersion; // by hand, for this model
    Object.assign(state, { threshold, proposedVersion: version, lowest: isMoved ? state.lowest : threshold });
    state.proposals = masks.map((mask) => known.get(mask.mask.counts) ?? { ...mask, proposed: true, path: tracePath(mask.mask) });
    known = new Map(state.proposals.map((mask) => [mask.mask.counts, mask]));
    if (!state.proposals.includes(state.target)) state.target = null;
    state.hovered = null;
  } finally {
    if (state.index === index) state.finding = false;
    page.draw();
  }
});

/** Ask for them ahead, so that they are there when the image is opened. */
export function prepareProposals(index) {
  if (state.canFind && state.proposing) get(`/api/images/${index}/proposals`).catch(() => {}); // said when that image is opened
}

export const listShown = () => (state.proposing ? state.proposals.filter((mask) => mask.score >= state.lowest && mask !== state.steps[0]?.found) : []);

/** The proposal that Enter and X mean: the selected one, or the one below the mouse. */
export const findTarget = () => [state.target, state.hovered].find((mask) => mask && listShown().includes(mask)) ?? null;

const accept = inTurn(async (masks) => {
  const { index, stamp, undo, redo } = state, uid = makeUid();
  const sent = masks.map(({ label, score, prompt, mask }) => ({ label, score, prompt, mask }));
  const changed = await post(`/api/images/${index}/accept`, { uid, stamp, masks: sent });
  const kept = changed.masks, all = { uid, masks: kept };
  if (kept.length) note({ undo, redo }, { undo: () => page.removeNow(all), redo: () => page.restoreNow(all) });
  if (state.index === index) {
    state.proposals = state.proposals.filter((mask) => !masks.includes(mask));
    Object.assign(state, { target: null, hovered: null });
  }
  await page.settle(index, changed, (others) => [...others, ...kept.map(page.dress)]);
  page.drawPanels();
  tell(kept.length ? `accepted ${kept.length} object${kept.length === 1 ? "" : "s"}` : "nothing was accepted: these objects have masks by now");
});

/** Accept the proposal that is meant, and select the next one where it was selected. */
export async function acceptOne() {
  const mask = findTarget();
  if (!mask) { tell(state.canFind ? "nothing to keep or to accept: click on an object, or point at a proposal" : "nothing to keep: click on an object"); return; }
  const following = state.target === mask ? listNext(mask, 1) : null;
  await accept([mask]);
  if (following && state.proposals.includes(following)) { state.target = following; page.drawPanels(); }
}

export async function acceptAll() {
  const masks = listShown();
  if (!masks.length) tell("nothing is proposed here"); else await accept(masks);
}

export const reject = inTurn(async () => {
  const mask = findTarget(), { index, undo, redo } = state;
  if (!mask) { tell("no proposal is selected: point at one, or press Tab"); return; }
  const give = async (back) => {
    await post(`/api/images/${index}/reject`, { mask: mask.mask, back });
    await refreshProposals();
  };
  const following = state.target === mask ? listNext(mask, 1) : null;
  state.proposals = state.proposals.filter((other) => other !== mask);
  Object.assign(state, { target: following === mask ? null : following, hovered: null });
  page.draw();
  await give(false);
  note({ undo, redo }, { undo: () => give(true), redo: () => give(false) });
  page.draw();
});

function listNext(mask, step) {
  const shown = listShown(), place = shown.indexOf(mask);
  return shown[(place + step + shown.length) % shown.length] ?? null;
}

/** Select the next proposal, the best first; or the one before. */
export function tour(step) {
  const shown = listShown();
  if (!shown.length) return;
  state.target = shown.includes(state.target) ? listNext(state.target, step) : shown[step > 0 ? 0 : shown.length - 1];
  state.selected = null;
  page.drawPanels();
}

/** Give the selected proposal another label before it is accepted. */
export function nameTarget(label) {
  state.target.label = label;
  state.proposals = [...state.proposals]; // drawn anew
}

export function hover(x, y) {
  const mask = x === null || state.steps.length ? null : hit(listShown(), x, y);
  if (mask !== state.hovered) { state.hovered = mask; page.draw(); }
}

export function toggle() {
  state.proposing = !state.proposing;
  Object.assign(state, { target: null, hovered: null });
  tell(state.proposing ? "proposals are shown" : "proposals are hidden");
  page.drawPanels();
  if (state.proposing) refreshProposals();
}
