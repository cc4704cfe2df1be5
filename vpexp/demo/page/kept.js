// Masks that are kept, and their labels: selected, changed, deleted, split, renamed.

import { changeMask, deleteMask, get, makeUid, post } from "./api.js";
import { tracePath } from "./mask.js";
import { guarded, inTurn, tell } from "./messages.js";
import { labelIndex, note, page, state } from "./state.js";
import { pickColor } from "./panels.js";

let known = new Map(); // masks by id, as they were last: their outlines are not traced again

/** Give a mask what is drawn of it; one that is as it was before is the same object again. */
export function dress(mask) {
  const old = known.get(mask.id), color = pickColor(labelIndex(mask.label)), isSame = old && old.mask?.counts === mask.mask?.counts;
  if (isSame && old.label === mask.label && old.color === color && old.uid === mask.uid && old.score === mask.score && old.edited === mask.edited) return old;
  const dressed = { ...mask, color, path: isSame ? old.path : mask.mask && tracePath(mask.mask) };
  known.set(mask.id, dressed);
  return dressed;
}

export function takeKept(about) {
  state.changes = about.changes;
  return showKept(about.masks.map(dress));
}

/** Show masks as the kept ones; false: they are those that were shown. */
function showKept(kept) {
  const isSame = kept.length === state.kept.length && kept.every((mask, place) => mask === state.kept[place]);
  if (!isSame) state.kept = kept;
  known = new Map(kept.map((mask) => [mask.id, mask]));
  state.counts[state.index] = kept.length;
  if (!kept.length) delete state.counts[state.index];
  if (!kept.some((mask) => mask.id === state.selected)) state.selected = null;
  page.drawPanels();
  return !isSame;
}

let refreshes = 0; // of answers that overtake one another the one that was asked for last counts

export async function refreshKept() {
  const index = state.index, refresh = ++refreshes;
  const about = await get(`/api/images/${index}`);
  if (state.index === index && refresh === refreshes && takeKept(about)) page.refreshProposals();
}

/** Take over a change of this page: as it is, where no other page has changed anything meanwhile; else all is asked for. */
export async function settle(index, { changes }, change) {
  if (changes > state.changes + 1) { await refreshKept(); return; }
  state.changes = changes;
  if (state.index !== index) return;
  refreshes += 1; // what is under way knows nothing of it
  showKept(change(state.kept));
  page.refreshProposals();
}

export function select(id) {
  state.selected = state.selected === id ? null : id;
  if (state.selected !== null) { state.hidden = false; state.target = null; }
  page.drawPanels();
}

/** Delete a mask, or all that were accepted at once: {uid, masks}. */
export async function removeNow(mask) {
  const { index } = state, gone = new Set((mask.masks ?? [mask]).map(({ id }) => id));
  try {
    await settle(index, await deleteMask(mask), (all) => all.filter(({ id }) => !gone.has(id)));
  } catch (error) {
    await refreshKept(); // another page may have been faster
    throw error;
  }
}

export async function restoreNow(mask) {
  const { index } = state, back = mask.masks ?? [mask], ids = new Set(back.map(({ id }) => id));
  await settle(index, await changeMask(mask, "restore"), (all) => [...all.filter(({ id }) => !ids.has(id)), ...back.map(dress)]);
}

const find = (id) => state.kept.find((mask) => mask.id === id);

export const remove = inTurn(async (id) => {
  const mask = find(id), { undo, redo } = state;
  if (!mask) { tell("select a kept mask first: in the list, or with V on the image"); return; }
  await removeNow(mask);
  note({ undo, redo }, { undo: () => restoreNow(mask), redo: () => removeNow(mask) });
  page.draw();
  tell("deleted · Ctrl+Z brings it back");
});

/** Split a mask into its connected parts; undo makes them one again. */
export const split = inTurn(async (id) => {
  const mask = find(id), { undo, redo } = state;
  if (!mask) { tell("select a kept mask first: in the list, or with V on the image"); return; }
  let uid, parts = [];
  const { index } = state;
  const splitNow = async () => {
    uid = makeUid();
    const changed = await changeMask(mask, "split", { uid });
    parts = changed.masks;
    await settle(index, changed, (all) => [...all.filter(({ id }) => id !== mask.id), ...parts.map(dress)]);
  };
  await splitNow();
  if (parts.length === 1) { tell("it has one part only: nothing was changed"); return; }
  const join = async () => {
    const gone = new Set(parts.map(({ id }) => id));
    const changed = await changeMask(mask, "pixels", { mask: mask.mask, edited: mask.edited, without: uid });
    await settle(index, changed, (all) => [...all.filter(({ id }) => !gone.has(id)), dress(mask)]);
  };
  note({ undo, redo }, { undo: join, redo: splitNow });
  page.draw();
  tell(`split into ${parts.length} parts`);
});

const relabel = inTurn(async (id, label, before) => {
  const mask = find(id), { index, undo, redo } = state;
  if (!mask || mask.label === label) return;
  const give = async (name, active) => {
    const changed = await changeMask(mask, "label", { label: name });
    state.label = active;
    if (!state.labels.includes(name)) state.labels = [...state.labels, name];
    await settle(index, changed, (all) => all.map((one) => (one.id === id ? dress({ ...one, label: name }) : one)));
  };
  await give(label, label);
  note({ undo, redo }, { undo: () => give(mask.label, before), redo: () => give(label, label) });
  page.draw();
});

export async function chooseLabel(label) {
  const before = state.label;
  state.label = label;
  if (state.target) page.nameTarget(label);
  page.drawPanels();
  if (state.selected !== null) await relabel(state.selected, label, before);
}

export const addLabel = guarded(async (name) => {
  const label = name.split(/\s+/).filter(Boolean).join(" ");
  if (!label) return;
  page.takeState(await post("/api/labels", { label }));
  await chooseLabel(label);
});

export const renameLabel = inTurn(async (label, name) => {
  const { undo, redo } = state;
  const give = async (from, to) => {
    const changed = await post("/api/labels/rename", { label: from, name: to });
    if (state.label === from) state.label = to;
    page.takeState(changed);
    await refreshKept();
  };
  await give(label, name);
  note({ undo, redo }, { undo: () => give(name, label), redo: () => give(label, name) });
  page.draw();
});

export const dropLabel = inTurn(async (label) => {
  const { undo, redo } = state, give = async (address) => page.takeState(await post(address, { label }));
  await give("/api/labels/delete");
  note({ undo, redo }, { undo: () => give("/api/labels"), redo: () => give("/api/labels/delete") });
  page.draw();
  tell(`label ${label} deleted`);
});

/** Find the smallest of masks that has a pixel of the image. */
export function hit(masks, x, y) {
  const context = scratch;
  const found = masks.filter(({ path }) => path && x >= path.box.left && x <= path.box.right && y >= path.box.top && y <= path.box.bottom && (path.bitmap || context.isPointInPath(path, x, y, "evenodd")));
  const size = ({ path: { box } }) => (box.right - box.left) * (box.bottom - box.top);
  return found.reduce((best, mask) => (best && size(best) <= size(mask) ? best : mask), null);
}
const scratch = new OffscreenCanvas(1, 1).getContext("2d");
