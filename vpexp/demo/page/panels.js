// What is around the image: the lists of images, labels, proposals and kept masks, each drawn from the state, as it is.

const byId = (id) => document.getElementById(id);
const HUES = [199, 32, 140, 330, 265, 60, 175, 0, 95, 295];

/** The colour of a label, by its place in the list. */
export function pickColor(index) {
  const round = Math.floor(index / HUES.length) % 3;
  return `hsl(${HUES[index % HUES.length]} ${80 - 22 * round}% ${62 + 8 * round}%)`;
}

function make(tag, classes, ...content) {
  const element = document.createElement(tag);
  element.className = classes;
  element.append(...content);
  return element;
}

function makeSwatch(color) {
  const swatch = make("i", "swatch");
  swatch.style.background = color;
  return swatch;
}

let items = []; // of the list of images, by number

/** Build the list of images once; marks are drawn by markImages. */
export function listImages(names, open) {
  items = names.map((name, index) => {
    const item = make("li", "", make("span", "", name.split("/").pop()), make("span", "count"));
    item.title = name;
    item.addEventListener("click", () => open(index));
    return item;
  });
  byId("images").replaceChildren(...items);
}

export const sortImages = (order) => byId("images").replaceChildren(...order.map((index) => items[index]));

export function markImages({ images, counts, done, index, broken }) {
  items.forEach((item, place) => {
    const count = counts[place] ?? 0, isDone = done.has(place);
    item.classList.toggle("labelled", count > 0 || isDone);
    item.classList.toggle("broken", broken.has(place));
    item.classList.toggle("chosen", place === index);
    item.lastChild.textContent = isDone ? `${count || "nothing"} ✓` : count || "";
    item.lastChild.title = `${count} mask${count === 1 ? "" : "s"}${isDone ? ", done" : ""}`;
  });
  const labelled = new Set([...Object.keys(counts).map(Number), ...done]).size, masks = Object.values(counts).reduce((sum, count) => sum + count, 0);
  byId("progress").textContent = `${labelled} of ${images.length} labelled · ${masks} mask${masks === 1 ? "" : "s"}`;
  byId("done").classList.toggle("chosen", done.has(index));
}

export function showImage(index) {
  items[index]?.scrollIntoView({ block: "nearest" });
}

export function drawLabels({ labels, label }, { choose, rename, drop }) {
  byId("labels").replaceChildren(...labels.map((name, index) => {
    const button = make("button", name === label ? "chosen" : "", makeSwatch(pickColor(index)), make("span", "", name));
    if (index < 9) button.append(make("kbd", "", String(index + 1)));
    button.type = "button";
    button.title = name;
    button.addEventListener("click", () => choose(name));
    const change = make("button", "small", "✎"), away = make("button", "small", "×");
    change.title = `Rename ${name}`;
    away.title = `Delete the label ${name}`;
    const row = make("div", "label", button, change, away);
    change.addEventListener("click", () => {
      const field = make("input", "");
      field.value = name;
      field.maxLength = 100;
      field.setAttribute("aria-label", `New name of ${name}`);
      row.replaceChildren(field);
      let isOver = false;
      const end = (wanted) => {
        if (isOver) return;
        isOver = true;
        row.replaceChildren(button, change, away);
        byId("canvas").focus();
        const typed = field.value.split(/\s+/).filter(Boolean).join(" ");
        if (wanted && typed && typed !== name) rename(name, typed);
      };
      field.addEventListener("keydown", (event) => { event.stopPropagation(); if (event.key === "Enter" || event.key === "Escape") end(event.key === "Enter"); });
      field.addEventListener("blur", () => end(true));
      field.focus();
      field.select();
    });
    away.addEventListener("click", () => drop(name));
    return row;
  }));
}

const ROW = 30, WHOLE = 300; // pixels of a row; rows of a list that is built whole: of a longer one, those that can be seen are

/** Draw the list of kept masks. */
export function drawKept({ kept, selected, hidden }, actions) {
  const list = byId("kept");
  byId("kept-count").textContent = kept.length || "";
  byId("hide").hidden = !kept.length;
  byId("hide").textContent = hidden ? "show" : "hide";
  const build = () => {
    const isLong = kept.length > WHOLE, first = isLong ? Math.max(0, Math.floor(list.scrollTop / ROW) - 5) : 0;
    const shown = isLong ? kept.slice(first, first + Math.ceil(list.clientHeight / ROW) + 10) : kept;
    const rows = shown.map((mask) => buildKept(mask, selected, actions));
    list.replaceChildren(...(isLong ? [makeSpace(first), ...rows, makeSpace(kept.length - first - shown.length)] : rows));
  };
  list.onscroll = kept.length > WHOLE ? build : null;
  build();
}

/** Bring the row of a kept mask into sight. */
export function showKept({ kept, selected }) {
  const list = byId("kept"), row = kept.findIndex((mask) => mask.id === selected) * ROW;
  if (row >= 0 && (row < list.scrollTop || row + ROW > list.scrollTop + list.clientHeight)) list.scrollTop = row - list.clientHeight / 2;
}

function makeSpace(rows) {
  const space = make("div", "");
  space.style.height = `${rows * ROW}px`;
  return space;
}

function buildKept(mask, selected, { select, remove }) {
  const button = make("button", "delete", "×");
  button.title = "Delete this mask";
  button.addEventListener("click", (event) => { event.stopPropagation(); remove(mask.id); });
  const score = make("span", "score", mask.edited ? "drawn" : mask.score === null ? "" : mask.score.toFixed(2));
  score.title = "predicted IoU; of an object that the model found, its score";
  const item = make("li", mask.id === selected ? "chosen" : "", makeSwatch(mask.color), make("span", "text", mask.label), score, button);
  item.dataset.id = mask.id;
  item.addEventListener("click", () => select(mask.id));
  return item;
}

export function drawProposals({ canFind, proposing, proposals, finding, lowest }, shown, target) {
  byId("proposals-section").hidden = !canFind;
  byId("proposals-count").textContent = shown.length || "";
  byId("propose").textContent = proposing ? "hide" : "show";
  const low = proposals.length - shown.length;
  byId("proposals-text").textContent = !proposing ? "hidden" : finding ? "looking for objects …" : target ? `${target.label} · score ${target.score.toFixed(2)}` : shown.length ? "point at one, or Tab" : low ? `none above ${lowest.toFixed(2)}` : "nothing more is proposed here";
  byId("lowest").value = lowest;
  byId("lowest-text").textContent = `≥ ${lowest.toFixed(2)}${low ? ` · ${low} below` : ""}`;
  byId("accept").disabled = byId("reject").disabled = byId("correct").disabled = !target;
  byId("accept-all").disabled = !shown.length;
  byId("accept-all").textContent = shown.length ? `Accept all ${shown.length}` : "Accept all";
}

export function drawLearning(learning) {
  byId("learning").hidden = !learning;
  if (!learning) return;
  byId("learning-text").textContent = learning.line;
  byId("learning-text").classList.toggle("busy", learning.busy);
  byId("learning-stop").textContent = learning.stopped ? "Go on" : "Stop";
  byId("learning-undo").disabled = !learning.can_undo;
}

export function drawTools({ tool, radius }) {
  for (const button of byId("tools").querySelectorAll("[data-tool]")) button.classList.toggle("chosen", button.dataset.tool === tool);
  byId("radius").hidden = !["brush", "eraser"].includes(tool);
  byId("radius-text").textContent = `${2 * radius} px`;
  byId("canvas").className = tool;
}

export function drawObject({ steps, answer, mask, path, area, waiting, unchanged, undo, redo }, choose) {
  const points = steps.filter((step) => step.point), inside = points.filter((step) => step.inside).length;
  const parts = [];
  if (steps[0]?.found) parts.push("a proposal");
  if (inside) parts.push(`${inside} inside`);
  if (points.length > inside) parts.push(`${points.length - inside} outside`);
  if (steps.some((step) => step.box)) parts.push("a box");
  const strokes = steps.filter((step) => step.stroke).length;
  if (strokes) parts.push(`${strokes} stroke${strokes === 1 ? "" : "s"}`);
  const text = byId("object");
  if (!steps.length) text.textContent = "click inside an object, or drag a box around it";
  else if (waiting || !mask) text.textContent = `${parts.join(", ")} …`;
  else if (!path) text.textContent = `${parts.join(", ")}: no mask here`;
  else if (strokes) text.textContent = `${parts.join(", ")} · ${area.toLocaleString("en")} pixels`;
  else text.replaceChildren(`${parts.join(", ")} · predicted IoU `, make("b", "", answer.iou.toFixed(2)), ` · ${answer.area.toLocaleString("en")} pixels`);
  if (unchanged) text.append(" · that changed nothing");
  const { scores, choice } = steps.length && answer && !strokes ? answer : { scores: [] };
  byId("choice").hidden = !scores.length;
  byId("choice-text").textContent = choice ? `${choice} of 3 · ${scores[choice - 1].toFixed(2)}` : "or one of 3";
  byId("choices").replaceChildren(...scores.map((score, place) => {
    const button = make("button", place + 1 === choice ? "chosen" : "", score.toFixed(2));
    button.title = `mask ${place + 1} of 3, predicted IoU ${score.toFixed(2)} (Tab)`;
    button.addEventListener("click", () => { choose(() => place + 1); byId("canvas").focus(); });
    return button;
  }));
  byId("keep").disabled = !path || waiting;
  byId("undo").disabled = !undo.length;
  byId("redo").disabled = !redo.length;
  byId("drop").disabled = !steps.length;
}
