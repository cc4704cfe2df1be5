// What is around the image: messages, and the lists of images, labels and kept masks, each drawn from the state, as it is.

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

let toastEnds;
export function tell(line, wrong = false) {
  const toast = byId("toast");
  toast.textContent = line;
  toast.classList.toggle("wrong", wrong);
  toast.hidden = false;
  clearTimeout(toastEnds);
  toastEnds = setTimeout(() => { toast.hidden = true; }, wrong ? 8000 : 1800);
}

/** Run what asks the server; what goes wrong is one line on the page. */
export const guarded = (action) => async (...given) => {
  try {
    return await action(...given);
  } catch (error) {
    tell(error.message, true);
    return undefined;
  }
};

let turns = Promise.resolve();

/** Run what changes what is kept, one thing after another: Ctrl+Z undoes the keep that it follows at once. */
export const inTurn = (action) => guarded((...given) => {
  const turn = turns.then(() => action(...given));
  turns = turn.catch(() => {});
  return turn;
});

export function setStatus(line, busy = false) {
  byId("status").textContent = line;
  byId("status").classList.toggle("busy", busy);
}

/** Build the list of images once; marks are drawn by markImages. */
export function listImages(names, open) {
  byId("images").replaceChildren(...names.map((name, index) => {
    const item = make("li", "", make("span", "", name.split("/").pop()), make("span", "count"));
    item.title = name;
    item.addEventListener("click", () => open(index));
    return item;
  }));
}

export function markImages({ images, counts, index, broken }) {
  [...byId("images").children].forEach((item, place) => {
    const count = counts[place] ?? 0;
    item.classList.toggle("labelled", count > 0);
    item.classList.toggle("broken", broken.has(place));
    item.classList.toggle("chosen", place === index);
    item.lastChild.textContent = count || "";
    if (count) item.lastChild.title = `${count} masks`;
  });
  const done = Object.keys(counts).length, masks = Object.values(counts).reduce((sum, count) => sum + count, 0);
  byId("progress").textContent = `${done} of ${images.length} labelled · ${masks} mask${masks === 1 ? "" : "s"}`;
}

export function showImage(index) {
  byId("images").children[index]?.scrollIntoView({ block: "nearest" });
}

export function drawLabels({ labels, label }, choose) {
  byId("labels").replaceChildren(...labels.map((name, index) => {
    const button = make("button", name === label ? "chosen" : "", makeSwatch(pickColor(index)), make("span", "", name));
    if (index < 9) button.append(make("kbd", "", String(index + 1)));
    button.type = "button";
    button.title = name;
    button.addEventListener("click", () => choose(name));
    return button;
  }));
}

export function drawKept({ kept, selected, hidden }, { select, remove }) {
  byId("kept-count").textContent = kept.length || "";
  byId("hide").hidden = !kept.length;
  byId("hide").textContent = hidden ? "show" : "hide";
  byId("kept").replaceChildren(...kept.map((mask) => {
    const button = make("button", "delete", "×");
    button.title = "Delete this mask";
    button.addEventListener("click", (event) => { event.stopPropagation(); remove(mask.id); });
    const score = make("span", "score", mask.score === null ? "" : mask.score.toFixed(2));
    score.title = "predicted IoU; of an object that the model found, its score";
    const item = make("li", mask.id === selected ? "chosen" : "", makeSwatch(mask.color), make("span", "text", mask.label), score, button);
    item.dataset.id = mask.id;
    item.addEventListener("click", () => select(mask.id));
    return item;
  }));
}

export function drawObject({ index, finding, steps, answer, waiting, unchanged, undo, redo }, choose) {
  const points = steps.filter((step) => step.point), inside = points.filter((step) => step.inside).length;
  const parts = [];
  if (inside) parts.push(`${inside} inside`);
  if (points.length > inside) parts.push(`${points.length - inside} outside`);
  if (steps.some((step) => step.box)) parts.push("a box");
  const text = byId("object");
  if (!steps.length) text.textContent = "click inside an object, or drag a box around it";
  else if (waiting || !answer) text.textContent = `${parts.join(", ")} …`;
  else if (!answer.area) text.textContent = `${parts.join(", ")}: no mask here`;
  else text.replaceChildren(`${parts.join(", ")} · predicted IoU `, make("b", "", answer.iou.toFixed(2)), ` · ${answer.area.toLocaleString("en")} pixels`);
  if (unchanged) text.append(" · that changed nothing");
  const { scores, choice } = steps.length && answer ? answer : { scores: [] };
  byId("choice").hidden = !scores.length;
  byId("choice-text").textContent = choice ? `${choice} of 3 · ${scores[choice - 1].toFixed(2)}` : "or one of 3";
  byId("choices").replaceChildren(...scores.map((score, place) => {
    const button = make("button", place + 1 === choice ? "chosen" : "", score.toFixed(2));
    button.title = `mask ${place + 1} of 3, predicted IoU ${score.toFixed(2)} (Tab)`;
    button.addEventListener("click", () => { choose(() => place + 1); byId("canvas").focus(); });
    return button;
  }));
  byId("keep").disabled = !answer?.area || waiting;
  byId("find").disabled = finding.has(index);
  byId("find").textContent = finding.has(index) ? "Finding objects …" : "Find objects";
  byId("undo").disabled = !undo.length;
  byId("redo").disabled = !redo.length;
  byId("drop").disabled = !steps.length;
}
