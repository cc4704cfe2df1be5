// Masks drawn once and shown in every frame: what moves is the picture of them, which is drawn anew a few milliseconds a frame.

const BUDGET = 12; // milliseconds of a frame
const LOOK = 12; // masks between two looks at the clock
const SMALL = 40; // screen pixels, up to which an outline is one plain line

const isSame = (one, other) => one && ["scale", "x", "y", "ratio", "width", "height"].every((name) => one[name] === other[name]);

const getContext = (canvas) => canvas.getContext("2d", { willReadFrequently: true }); // drawn when it is asked to be, not later

/** Draw a mask: filled, with an outline that stands out from light and dark. */
export function drawMask(context, scale, { path, color }, { alpha, line, outline = color, isPlain = false }) {
  if (!path) return;
  context.globalAlpha = alpha;
  context.fillStyle = color;
  if (path.bitmap) context.drawImage(path.bitmap, path.left, path.top);
  else context.fill(path, "evenodd");
  context.globalAlpha = 1;
  if (path.bitmap) return;
  if (isPlain) {
    context.lineJoin = "bevel";
    context.strokeStyle = outline;
    context.lineWidth = line / scale;
    context.stroke(path);
    return;
  }
  context.lineJoin = "round";
  context.strokeStyle = "#0009";
  context.lineWidth = (line + 1.5) / scale;
  context.stroke(path);
  context.strokeStyle = outline;
  context.lineWidth = line / scale;
  context.stroke(path);
}

function drawName(context, scale, { path, color, label }) {
  if (!path) return;
  const { left, top, right } = path.box, size = 11 / scale;
  if ((right - left) * scale < 24) return; // where masks are small, names would cover them
  context.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
  const width = context.measureText(label).width + 8 / scale;
  context.fillStyle = color;
  context.fillRect(left, top - 15 / scale, width, 15 / scale);
  context.fillStyle = "#111";
  context.fillText(label, left + 4 / scale, top - 4 / scale);
}

export const place = (context, { ratio, scale, x, y }) => context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);

export class Layer {
  /** @param style {alpha, line} of a mask */
  constructor(style, names) {
    this.style = style;
    this.names = names;
    this.front = this.make(); // what is shown
    this.back = null; // what is being drawn for the view at hand
  }

  make() { return { canvas: new OffscreenCanvas(1, 1), masks: [], count: 0, view: null }; }

  /** Draw masks as they lie in a view; false: not all of them yet, another frame is needed. */
  draw(context, masks, view) {
    const until = performance.now() + BUDGET, { front } = this, isStill = isSame(this.last, view);
    this.last = view;
    const isNext = isSame(front.view, view) && front.count === front.masks.length && front.masks.length <= masks.length && front.masks.every((mask, index) => mask === masks[index]);
    if (isNext) {
      front.masks = masks;
      this.back = null;
    } else if (!this.back || !isSame(this.back.view, view) || this.back.masks !== masks) {
      this.back = Object.assign(this.make(), { masks, view });
      this.back.canvas.width = Math.max(1, view.width);
      this.back.canvas.height = Math.max(1, view.height);
    }
    const target = this.back ?? front, waits = !isStill && front.view && front.masks.length > LOOK; // what moves is drawn when it rests
    const isWhole = !waits && this.goOn(target, view, until);
    if (isWhole && this.back) { this.front = this.back; this.back = null; }
    this.show(context, view);
    if (!isWhole && !this.front.view) { context.setTransform(1, 0, 0, 1, 0, 0); context.drawImage(target.canvas, 0, 0); } // the first time: as far as it is
    return isWhole;
  }

  /** Draw further masks until the time is over; true: all are. */
  goOn(target, view, until) {
    const { masks } = target, context = getContext(target.canvas), { scale, ratio } = view;
    let drawn = 0;
    place(context, view);
    const [left, top] = [-view.x / scale, -view.y / scale], [right, bottom] = [left + view.width / ratio / scale, top + view.height / ratio / scale];
    for (; target.count < masks.length; target.count++) {
      if (drawn === LOOK) {
        context.getImageData(0, 0, 1, 1); // waits until all is drawn: else the clock would say nothing
        drawn = 0;
        if (performance.now() > until) return false;
      }
      const mask = masks[target.count], box = mask.path?.box;
      if (!box || box.right < left || box.left > right || box.bottom < top || box.top > bottom) continue;
      const isPlain = Math.max(box.right - box.left, box.bottom - box.top) * scale < SMALL;
      drawMask(context, scale, mask, isPlain ? { ...this.style, isPlain } : this.style);
      drawn += 1;
      if (this.names) drawName(context, scale, mask);
    }
    return true;
  }

  /** Show what was drawn last, moved to where it lies by now. */
  show(context, view) {
    const { canvas, view: old } = this.front;
    if (!old) return;
    const grown = view.scale / old.scale;
    context.setTransform(grown, 0, 0, grown, view.ratio * (view.x - old.x * grown), view.ratio * (view.y - old.y * grown));
    context.drawImage(canvas, 0, 0);
  }
}
