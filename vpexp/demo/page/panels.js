// The lists beside the image: images, labels, kept masks. Each is drawn from the state, as it is.

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
    score.title = "predicted IoU";
    const item = make("li", mask.id === selected ? "chosen" : "", makeSwatch(mask.color), make("span", "text", mask.label), score, button);
    item.dataset.id = mask.id;
    item.addEventListener("click", () => select(mask.id));
    return item;
  }));
}

export function drawObject({ steps, answer, waiting, hasUndo }) {
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
  byId("keep").disabled = !answer?.area || waiting;
  byId("undo").disabled = !hasUndo;
  byId("drop").disabled = !steps.length;
}
