// The list of images: opened, encoded ahead, marked as done, in the order of their names or of what they promise.

import { get, loadPicture, post } from "./api.js";
import { guarded, inTurn, setStatus, tell } from "./messages.js";
import * as panels from "./panels.js";
import { byId, note, page, state } from "./state.js";
import { setSteps } from "./object.js";
import { takeKept } from "./kept.js";
import { prepareProposals, refreshProposals } from "./proposals.js";

const SETTLE = 120; // milliseconds that an image is shown before it is encoded: who leafs through encodes nothing

let ahead = { index: -1, picture: null }; // the picture that is fetched ahead
const visited = []; // where P leads back to, where images are ordered by what they promise

export const open = guarded(async (index, back = false) => {
  if (index < 0 || index >= state.images.length || index === state.index) return;
  if (page.isOpen()) state.left.set(state.index, { steps: state.steps, undo: state.undo, redo: state.redo });
  if (state.index >= 0 && !back) visited.push(state.index);
  Object.assign(state, { index, kept: [], selected: null, steps: [], answer: null, mask: null, path: null, waiting: false, undo: [], redo: [] });
  Object.assign(state, { proposals: [], target: null, hovered: null, finding: false });
  byId("name").textContent = state.images[index];
  byId("size").textContent = `${index + 1} of ${state.images.length}`;
  byId("notice").hidden = true;
  history.replaceState(null, "", `#${index + 1}`);
  panels.showImage(index);
  page.show(null);
  page.drawPanels();
  setStatus("opening", true);
  try {
    const picture = ahead.index === index ? ahead.picture : loadPicture(index);
    picture.catch(() => {}); // what the server says of a broken image is better, and comes first
    const about = await get(`/api/images/${index}`);
    const loaded = await picture;
    if (state.index !== index) return;
    byId("size").textContent = `${index + 1} of ${state.images.length} · ${about.width} × ${about.height}`;
    state.stamp = ahead.index === index ? await ahead.stamp : about.stamp; // of the picture that is shown
    takeKept(about);
    page.show(loaded);
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
  page.drawPanels();
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
  await refreshProposals();
  await refreshOrder();
  const following = findNext();
  if (following === null || ahead.index === following || state.index !== index) return;
  const stamp = get(`/api/images/${following}?ahead`).then((about) => about.stamp).catch(() => null);
  ahead = { index: following, picture: loadPicture(following), stamp };
  ahead.picture.catch(() => { ahead = { index: -1, picture: null }; });
  post(`/api/images/${following}/encode`, { ahead: true }).then(() => prepareProposals(following)).catch(() => {}); // said when that image is opened
}

/** Find the image that N opens; null: there is none. */
function findNext() {
  if (state.order === "name") return state.index + 1 < state.images.length ? state.index + 1 : null;
  return state.next.find((index) => index !== state.index && !state.counts[index] && !state.done.has(index)) ?? null;
}

export function openNext() {
  const following = findNext();
  if (following === null) tell(state.order === "name" ? "this is the last image" : "all images are labelled");
  else open(following);
}

export function openPrevious() {
  if (state.order === "name") { if (state.index > 0) open(state.index - 1, true); else tell("this is the first image"); }
  else if (visited.length) open(visited.pop(), true);
  else tell("there is no image before this one");
}

/** Ask in which order images promise most, where that is the order. */
export const refreshOrder = guarded(async () => {
  if (state.order === "name") return;
  state.next = (await get("/api/order")).images;
  const first = new Set(state.next);
  panels.sortImages([...state.next, ...[...state.images.keys()].filter((index) => !first.has(index))]);
});

export async function chooseOrder(order) {
  state.order = order;
  if (order === "name") panels.sortImages([...state.images.keys()]);
  await refreshOrder();
  panels.showImage(state.index);
}

/** Mark an image as labelled whole, also without any mask, and open the next one; or take the mark away. */
export const toggleDone = inTurn(async () => {
  const { index, stamp, undo, redo } = state, now = !state.done.has(index);
  if (!page.isOpen()) return;
  const give = async (done) => {
    const { changes } = await post(`/api/images/${index}/done`, { done, stamp });
    if (changes <= state.changes + 1) state.changes = changes;
    if (done) state.done.add(index); else state.done.delete(index);
    page.drawPanels();
  };
  await give(now);
  note({ undo, redo }, { undo: () => give(!now), redo: () => give(now) });
  page.draw();
  const masks = state.kept.length;
  tell(!now ? "not done any more" : masks ? `done: ${masks} mask${masks === 1 ? "" : "s"}` : "done: nothing here");
  if (now) openNext();
});
