// The canvas: an image of any size, zoomed and moved, with masks, points and a box on it; and what the mouse does there.
// Coordinates that leave this file are pixels of the image.

const FARTHEST = 40; // screen pixels a pixel of the image
const DRAG = 4; // screen pixels that a press has to move to be a box

export class View {
  /** @param handlers {point(x, y, inside), box(x0, y0, x1, y1)} */
  constructor(canvas, handlers) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.handlers = handlers;
    this.image = null;
    this.scene = { kept: [], current: null };
    this.scale = 1; this.x = 0; this.y = 0; // screen = image * scale + (x, y), in CSS pixels
    this.drag = null;
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", () => { this.drag = null; this.draw(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.zoom(event), { passive: false });
  }

  show(image) { this.image = image; this.drag = null; this.fit(); }

  resize() {
    const ratio = window.devicePixelRatio || 1, fitted = this.fitted;
    this.canvas.width = this.canvas.clientWidth * ratio;
    this.canvas.height = this.canvas.clientHeight * ratio;
    if (fitted) this.fit(); else this.draw();
  }

  fit() {
    this.fitted = true;
    if (this.image) {
      const { clientWidth: width, clientHeight: height } = this.canvas, { width: w, height: h } = this.image;
      this.scale = Math.min((width - 32) / w, (height - 32) / h, FARTHEST);
      this.x = (width - w * this.scale) / 2;
      this.y = (height - h * this.scale) / 2;
    }
    this.draw();
  }

  toImage(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [(event.clientX - frame.left - this.x) / this.scale, (event.clientY - frame.top - this.y) / this.scale];
  }

  /** Where a place of the image lies in the window. */
  toWindow(x, y) {
    const frame = this.canvas.getBoundingClientRect();
    return [frame.left + this.x + x * this.scale, frame.top + this.y + y * this.scale];
  }

  zoom(event) {
    event.preventDefault();
    if (!this.image) return;
    const [x, y] = this.toImage(event), frame = this.canvas.getBoundingClientRect();
    const smallest = 16 / Math.max(this.image.width, this.image.height);
    this.scale = Math.min(FARTHEST, Math.max(smallest, this.scale * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015))));
    this.x = event.clientX - frame.left - x * this.scale;
    this.y = event.clientY - frame.top - y * this.scale;
    this.fitted = false;
    this.draw();
  }

  press(event) {
    if (!this.image) return;
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    const moves = event.button === 1 || (event.button === 0 && (event.ctrlKey || event.metaKey));
    const outside = event.button === 2 || event.altKey || event.shiftKey;
    this.drag = { kind: moves ? "move" : outside ? "outside" : "inside", from: this.toImage(event), start: [event.clientX, event.clientY], at: [this.x, this.y], moved: false };
    event.preventDefault();
  }

  move(event) {
    const drag = this.drag;
    if (!drag) return;
    const dx = event.clientX - drag.start[0], dy = event.clientY - drag.start[1];
    drag.moved ||= Math.hypot(dx, dy) > DRAG;
    drag.to = this.toImage(event);
    if (drag.kind === "move") { this.x = drag.at[0] + dx; this.y = drag.at[1] + dy; this.fitted = false; }
    if (drag.moved) this.draw();
  }

  release(event) {
    const drag = this.drag;
    this.drag = null;
    if (!drag || drag.kind === "move") return;
    const { width, height } = this.image, [x, y] = drag.from.map(Math.floor);
    if (drag.moved && drag.kind === "inside") {
      const [a, b] = [drag.from, this.toImage(event)];
      const [x0, x1] = [a[0], b[0]].sort((p, q) => p - q).map((v) => Math.round(Math.min(width, Math.max(0, v))));
      const [y0, y1] = [a[1], b[1]].sort((p, q) => p - q).map((v) => Math.round(Math.min(height, Math.max(0, v))));
      if (x1 > x0 && y1 > y0) this.handlers.box(x0, y0, x1, y1, event);
    } else if (x >= 0 && y >= 0 && x < width && y < height) {
      this.handlers.point(x, y, drag.kind === "inside", event);
    }
    this.draw();
  }

  draw() {
    const { context, canvas, image, scale } = this, ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!image) return;
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * this.x, ratio * this.y);
    context.imageSmoothingEnabled = scale < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0);
    for (const mask of this.scene.kept) this.drawMask(mask, mask.selected ? 0.5 : 0.28, mask.selected ? 3 : 1.5);
    for (const mask of this.scene.kept) this.drawName(mask);
    const current = this.scene.current;
    if (current?.path) this.drawMask(current, 0.42, 2, "#fff");
    if (current) this.drawSteps(current.steps);
    if (this.drag?.moved && this.drag.kind === "inside") this.drawBox([...this.drag.from, ...this.drag.to]);
  }

  drawMask({ path, color }, alpha, line, outline = color) {
    if (!path) return;
    const { context, scale } = this;
    context.globalAlpha = alpha;
    context.fillStyle = color;
    if (path.bitmap) context.drawImage(path.bitmap, path.left, path.top);
    else context.fill(path, "evenodd");
    context.globalAlpha = 1;
    if (path.bitmap) return;
    context.lineJoin = "round";
    context.strokeStyle = "#0009";
    context.lineWidth = (line + 1.5) / scale;
    context.stroke(path);
    context.strokeStyle = outline;
    context.lineWidth = line / scale;
    context.stroke(path);
  }

  drawName({ path, color, label }) {
    if (!path) return;
    const { context, scale } = this, { left, top, right } = path.box, size = 11 / scale;
    if ((right - left) * scale < 24) return; // where masks are small, names would cover them
    context.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
    const width = context.measureText(label).width + 8 / scale;
    context.fillStyle = color;
    context.fillRect(left, top - 15 / scale, width, 15 / scale);
    context.fillStyle = "#111";
    context.fillText(label, left + 4 / scale, top - 4 / scale);
  }

  drawSteps(steps) {
    const { context, scale } = this;
    for (const step of steps) {
      if (step.box) { this.drawBox(step.box); continue; }
      const [x, y] = step.point, radius = 5.5 / scale;
      context.beginPath();
      context.arc(x + 0.5, y + 0.5, radius, 0, 7);
      context.fillStyle = step.inside ? "#35c759" : "#ff453a";
      context.fill();
      context.strokeStyle = "#fff";
      context.lineWidth = 1.6 / scale;
      context.stroke();
      context.beginPath(); // plus or minus: the sign does not rest on its colour alone
      context.moveTo(x + 0.5 - radius / 2, y + 0.5);
      context.lineTo(x + 0.5 + radius / 2, y + 0.5);
      if (step.inside) { context.moveTo(x + 0.5, y + 0.5 - radius / 2); context.lineTo(x + 0.5, y + 0.5 + radius / 2); }
      context.stroke();
    }
  }

  drawBox([x0, y0, x1, y1]) {
    const { context, scale } = this;
    context.lineWidth = 1.5 / scale;
    context.strokeStyle = "#000a";
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    context.setLineDash([6 / scale, 4 / scale]);
    context.strokeStyle = "#fff";
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    context.setLineDash([]);
  }
}
