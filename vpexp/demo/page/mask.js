// Masks: from COCO's compressed run lengths to an outline along the edges of pixels, which the canvas fills and strokes; and back,
// with what the brush adds and the eraser takes away.

/** Read COCO's compressed counts: 5 bits a character, low bits first, from the third run on as a difference. */
function readCounts(text) {
  const runs = [];
  let value = 0, shift = 0;
  for (let i = 0; i < text.length; i++) {
    const chunk = text.charCodeAt(i) - 48;
    value += (chunk & 31) * 2 ** shift;
    shift += 5;
    if (chunk & 32) continue;
    if (chunk & 16) value -= 2 ** shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    value = shift = 0;
  }
  return runs;
}

/** Write COCO's compressed counts. */
function writeCounts(runs) {
  let text = "";
  runs.forEach((run, index) => {
    let value = index > 2 ? run - runs[index - 2] : run, more = true;
    while (more) {
      const chunk = value & 31;
      value >>= 5;
      more = chunk & 16 ? value !== -1 : value !== 0;
      text += String.fromCharCode(48 + chunk + (more ? 32 : 0));
    }
  });
  return text;
}

/** Expand the part of a mask that has pixels: {left, top, width, height, inside: Uint8Array, padded by one pixel}. */
function expand({ size: [height], counts }) {
  const spans = []; // [column, first row, row after the last]
  let place = 0, left = Infinity, right = -1, top = Infinity, bottom = -1;
  readCounts(counts).forEach((length, index) => {
    if (index % 2) {
      for (let start = place; start < place + length; ) {
        const column = Math.floor(start / height), row = start - column * height;
        const end = Math.min(height, row + place + length - start);
        spans.push([column, row, end]);
        left = Math.min(left, column); right = Math.max(right, column);
        top = Math.min(top, row); bottom = Math.max(bottom, end);
        start += end - row;
      }
    }
    place += length;
  });
  if (!spans.length) return null;
  const width = right - left + 3, rows = bottom - top + 2;
  const inside = new Uint8Array(width * rows);
  for (const [column, row, end] of spans)
    for (let y = row; y < end; y++) inside[(y - top + 1) * width + column - left + 1] = 1;
  return { left: left - 1, top: top - 1, width, height: rows, inside };
}

const MOST_CORNERS = 20000; // of an outline: a mask of more is noise, as of a model with random weights

/** Turn a noisy mask into a bitmap of one colour; its outline would take seconds to draw, and hide all. */
function paint({ width, height, inside }) {
  const bitmap = new OffscreenCanvas(width, height), context = bitmap.getContext("2d");
  const pixels = context.createImageData(width, height), words = new Uint32Array(pixels.data.buffer);
  for (let place = 0; place < inside.length; place++) if (inside[place]) words[place] = 0xfff0c34c; // ABGR
  context.putImageData(pixels, 0, 0);
  return bitmap;
}

// Directions along pixel edges, the inside to the right: east, south, west, north.
const DX = [1, 0, -1, 0], DY = [0, 1, 0, -1];

/** Compress a part of an image: {mask, area}. */
function compress({ left, top, width, height, inside }, size) {
  const marks = [], runs = []; // places, down column after column, where the value changes
  let area = 0, before = 0;
  for (let x = 0; x < width; x++)
    for (let y = 0; y < height; y++) {
      if (!inside[y * width + x]) continue;
      const place = (left + x) * size[0] + top + y;
      if (marks[marks.length - 1] === place) marks[marks.length - 1] += 1; else marks.push(place, place + 1);
      area += 1;
    }
  for (const mark of marks) { runs.push(mark - before); before = mark; }
  if (before < size[0] * size[1]) runs.push(size[0] * size[1] - before);
  return { mask: { size, counts: writeCounts(runs) }, area };
}

const EMPTY = { left: 0, top: 0, width: 1, height: 1, inside: new Uint8Array(1) };

/** Draw strokes into a mask: {mask, area, path}. A stroke is {line: [[x, y], …], radius, add}; size is [height, width] of the image. */
export function drawStrokes(mask, strokes, size) {
  const old = (mask && expand(mask)) ?? EMPTY, [height, width] = size;
  const ends = strokes.flatMap(({ line, radius }) => line.flatMap(([x, y]) => [[x - radius, y - radius], [x + radius, y + radius]]));
  const known = old === EMPTY ? [] : [[old.left, old.top], [old.left + old.width - 1, old.top + old.height - 1]];
  const xs = [...ends, ...known].map(([x]) => x), ys = [...ends, ...known].map(([, y]) => y);
  const left = Math.max(0, Math.floor(xs.reduce((a, b) => Math.min(a, b)))) - 1, top = Math.max(0, Math.floor(ys.reduce((a, b) => Math.min(a, b)))) - 1;
  const right = Math.min(width, Math.ceil(xs.reduce((a, b) => Math.max(a, b))) + 1), bottom = Math.min(height, Math.ceil(ys.reduce((a, b) => Math.max(a, b))) + 1);
  const part = { left, top, width: Math.max(2, right - left + 1), height: Math.max(2, bottom - top + 1) };
  part.inside = new Uint8Array(part.width * part.height);
  for (let y = 0; y < old.height; y++)
    for (let x = 0; x < old.width; x++) if (old.inside[y * old.width + x]) part.inside[(y + old.top - top) * part.width + x + old.left - left] = 1;
  for (const { line, radius, add } of strokes)
    line.forEach(([x, y], place) => stamp(part, line[Math.max(0, place - 1)], [x, y], radius, add ? 1 : 0, size));
  return { ...compress(part, size), path: traceOutline(part) };
}

/** Set the pixels whose middles lie within a radius of a piece of a line. */
function stamp({ left, top, width, inside }, [x0, y0], [x1, y1], radius, value, [height, columns]) {
  const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
  for (let y = Math.max(0, Math.floor(Math.min(y0, y1) - radius)); y <= Math.min(height - 1, Math.max(y0, y1) + radius); y++)
    for (let x = Math.max(0, Math.floor(Math.min(x0, x1) - radius)); x <= Math.min(columns - 1, Math.max(x0, x1) + radius); x++) {
      const along = length ? Math.min(1, Math.max(0, ((x + 0.5 - x0) * dx + (y + 0.5 - y0) * dy) / length)) : 0;
      if (Math.hypot(x + 0.5 - x0 - along * dx, y + 0.5 - y0 - along * dy) <= radius) inside[(y - top) * width + x - left] = value;
    }
}

/** Trace all outlines, holes too, as one path in pixels of the image; null for an empty mask. */
export function tracePath(mask) {
  const part = expand(mask);
  return part && traceOutline(part);
}

/** Trace a part of an image, padded by one pixel. */
function traceOutline(part) {
  const { left, top, width, height, inside } = part, path = new Path2D();
  // Of an edge along direction d from a corner: the pixel to its right (inside), and the one to its left (outside).
  // The corner (x, y), at y * width + x, is the upper left one of the pixel of that place.
  const right = [0, -1, -1 - width, -width], over = [-width, 0, -1, -1 - width];
  const step = DX.map((dx, d) => dx + DY[d] * width);
  const seen = new Uint8Array(width * height); // edges to the east: every loop has one
  path.box = { left: left + width, top: top + height, right: left, bottom: top };
  let corners = 0, isEmpty = true;
  for (let start = width; start < inside.length; start++) {
    if (!inside[start] || inside[start - width] || seen[start]) continue;
    let place = start, d = 0;
    isEmpty = false;
    path.moveTo(left + (place % width), top + Math.floor(place / width));
    do {
      if (d === 0) seen[place] = 1;
      place += step[d];
      let to = (d + 1) & 3; // right first: it stays at its pixel where two touch at the corner
      if (!inside[place + right[to]] || inside[place + over[to]]) to = d;
      if (to === d && (!inside[place + right[d]] || inside[place + over[d]])) to = (d + 3) & 3;
      if (to !== d) {
        const x = left + (place % width), y = top + Math.floor(place / width), box = path.box;
        if (x < box.left) box.left = x;
        if (x > box.right) box.right = x;
        if (y < box.top) box.top = y;
        if (y > box.bottom) box.bottom = y;
        path.lineTo(x, y);
        if (++corners > MOST_CORNERS) return Object.assign(path, { bitmap: paint(part), left, top });
      }
      d = to;
    } while (place !== start || d !== 0);
    path.closePath();
  }
  return isEmpty ? null : path;
}
