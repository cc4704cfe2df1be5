// What the page knows, and what was done to an image, to be undone and redone. The server answers for masks; what is kept lies there.

import { inTurn, tell } from "./messages.js";

export const byId = (id) => document.getElementById(id);

export const state = {
  images: [], counts: {}, done: new Set(), labels: [], version: "", changes: 0, broken: new Set(),
  order: "name", next: [], // images that are not labelled yet, those first that promise most
  index: -1, label: "", kept: [], selected: null, hidden: false,
  canFind: false, proposals: [], proposing: true, finding: false, lowest: 0, threshold: 0, target: null, hovered: null, modelVersion: 0, proposedVersion: null,
  tool: "point", radius: 8, // of the brush, in pixels of the image
  steps: [], answer: null, mask: null, path: null, waiting: false, unchanged: false, // the object that is being clicked or drawn
  undo: [], redo: [], left: new Map(), // what was done to this image, last thing last; the same, and steps, of others
  learning: null, latency: null,
};

/** What draws the page, and what its parts call of one another; filled by main.js. */
export const page = {};

export const labelIndex = (label) => Math.max(0, state.labels.indexOf(label));

/** Note what was done to an image; what was undone before cannot be redone any more. */
export function note({ undo, redo }, change) {
  undo.push(change);
  redo.length = 0;
}

const travel = (from, to) => inTurn(async () => {
  const { [from]: past, [to]: future } = state, change = past.pop();
  if (!change) { tell(`there is nothing to ${from}`); return; }
  try {
    await change[from]();
    future.push(change);
  } catch (error) {
    if (error.status !== 404) past.push(change); // else another page was faster, and the change before it is next
    throw error;
  } finally {
    page.draw();
  }
});
export const undo = travel("undo", "redo"), redo = travel("redo", "undo");
