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

// Directions along pixel edges, the inside to the right: east, south, west, north.
const DX = [1, 0, -1, 0], DY = [0, 1, 0, -1];

/** Trace all outlines, holes too, as one path in pixels of the image; null for an empty mask. */
export function tracePath(mask) {
  const part = expand(mask);
  if (!part) return null;
  const { left, top, width, height, inside } = part, path = new Path2D();
  const at = (x, y) => inside[y * width + x];
  // An edge that runs along direction d from corner (x, y) has the inside to its right, the outside to its left.
  const isEdge = (x, y, d) => {
    if (d === 0) return at(x, y) && !at(x, y - 1);
    if (d === 1) return at(x - 1, y) && !at(x, y);
    if (d === 2) return at(x - 1, y - 1) && !at(x - 1, y);
    return at(x, y - 1) && !at(x - 1, y - 1);
  };
  const seen = new Uint8Array(width * height); // edges to the east: every loop has one
  for (let row = 1; row < height; row++) for (let column = 1; column < width; column++) {
    if (seen[row * width + column] || !isEdge(column, row, 0)) continue;
    let x = column, y = row, d = 0;
    path.moveTo(left + x, top + y);
    do {
      if (d === 0) seen[y * width + x] = 1;
      x += DX[d]; y += DY[d];
      const turn = [1, 0, 3].find((step) => isEdge(x, y, (d + step) % 4)); // right first: stays at its pixel
      if (turn) path.lineTo(left + x, top + y);
      d = (d + turn) % 4;
    } while (x !== column || y !== row || d !== 0);
    path.closePath();
  }
  path.box = { left: left + 1, top: top + 1, right: left + width - 1, bottom: top + height - 1 };
  return path;
}
