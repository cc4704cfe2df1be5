// Masks: from COCO's compressed run lengths to an outline along the edges of pixels, which the canvas fills and strokes.

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

/** Trace all outlines, holes too, as one path in pixels of the image; null for an empty mask. */
export function tracePath(mask) {
  const part = expand(mask);
  if (!part) return null;
  const { left, top, width, height, inside } = part, path = new Path2D();
  // Of an edge along direction d from a corner: the pixel to its right (inside), and the one to its left (outside).
  // The corner (x, y), at y * width + x, is the upper left one of the pixel of that place.
  const right = [0, -1, -1 - width, -width], over = [-width, 0, -1, -1 - width];
  const step = DX.map((dx, d) => dx + DY[d] * width);
  const seen = new Uint8Array(width * height); // edges to the east: every loop has one
  path.box = { left: left + 1, top: top + 1, right: left + width - 1, bottom: top + height - 1 };
  let corners = 0;
  for (let start = width; start < inside.length; start++) {
    if (!inside[start] || inside[start - width] || seen[start]) continue;
    let place = start, d = 0;
    path.moveTo(left + (place % width), top + Math.floor(place / width));
    do {
      if (d === 0) seen[place] = 1;
      place += step[d];
      let to = (d + 1) & 3; // right first: it stays at its pixel where two touch at the corner
      if (!inside[place + right[to]] || inside[place + over[to]]) to = d;
      if (to === d && (!inside[place + right[d]] || inside[place + over[d]])) to = (d + 3) & 3;
      if (to !== d) {
        path.lineTo(left + (place % width), top + Math.floor(place / width));
        if (++corners > MOST_CORNERS) return Object.assign(path, { bitmap: paint(part), left, top });
      }
      d = to;
    } while (place !== start || d !== 0);
    path.closePath();
  }
  return path;
}
