// The canvas: an image of any size, zoomed and moved, with masks, points and a box on it; and what mouse, pen and fingers do there.
// Coordinates that leave this file are pixels of the image.

import { drawMask, Layer, place } from "./layer.js";

const FARTHEST = 40; // screen pixels a pixel of the image
const DRAG = 4; // screen pixels that a press has to move to be a box
const DRAWS = ["brush", "eraser"];

export class View {
  /** @param handlers {point(x, y, inside), box(x0, y0, x1, y1), pick(x, y), stroke(line, add), hover(x, y)} */
  constructor(canvas, handlers) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.handlers = handlers;
    this.image = null;
    this.scene = { kept: [], proposals: [], lit: [], current: null, tool: "point", radius: 8 };
    this.layers = [new Layer({ alpha: 0.12, line: 1 }, false), new Layer({ alpha: 0.28, line: 1.5 }, true)];
    this.scale = 1; this.x = 0; this.y = 0; // screen = image * scale + (x, y), in CSS pixels
    this.drag = null;
    this.pointers = new Map(); // that are down
    this.pointer = null; // where the mouse is, in pixels of the image
    this.asked = false; // for a frame
    this.frames = []; // milliseconds that the last frames took
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => { this.pointers.delete(event.pointerId); this.drag = null; this.draw(); });
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.handlers.hover(null); this.draw(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.turn(event), { passive: false });
  }

  show(image) {
    this.image = image;
    this.drag = null;
    this.layers = this.layers.map(({ style, names }) => new Layer(style, names));
    this.fit();
  }

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

  toImage({ clientX, clientY }) {
    const frame = this.canvas.getBoundingClientRect();
    return [(clientX - frame.left - this.x) / this.scale, (clientY - frame.top - this.y) / this.scale];
  }

  /** Where a place of the image lies in the window. */
  toWindow(x, y) {
    const frame = this.canvas.getBoundingClientRect();
    return [frame.left + this.x + x * this.scale, frame.top + this.y + y * this.scale];
  }

  /** Zoom; what lies at a place of the window stays there: the middle, where none is given. */
  zoom(factor, at = null) {
    if (!this.image) return;
    const frame = this.canvas.getBoundingClientRect();
    const { clientX, clientY } = at ?? { clientX: frame.left + frame.width / 2, clientY: frame.top + frame.height / 2 };
    const [x, y] = this.toImage({ clientX, clientY }), smallest = 16 / Math.max(this.image.width, this.image.height);
    this.scale = Math.min(FARTHEST, Math.max(smallest, this.scale * factor));
    this.x = clientX - frame.left - x * this.scale;
    this.y = clientY - frame.top - y * this.scale;
    this.fitted = false;
    this.draw();
  }

  turn(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event);
  }

  press(event) {
    if (!this.image) return;
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size > 1) { this.drag = { kind: "pinch", from: this.spread() }; this.draw(); return; }
    const { tool } = this.scene, start = [event.clientX, event.clientY], from = this.toImage(event);
    const moves = event.button === 1 || (event.button === 0 && (event.ctrlKey || event.metaKey));
    const other = event.button === 2 || event.altKey || event.shiftKey; // outside, or the other of brush and eraser
    const kind = moves ? "move" : DRAWS.includes(tool) ? "stroke" : tool === "select" ? "pick" : other || tool === "outside" ? "outside" : "inside";
    this.drag = { kind, from, start, at: [this.x, this.y], moved: false, line: [from], add: (tool === "brush") !== other };
    this.draw();
  }

  /** The middle of two fingers, and how far they are apart. */
  spread() {
    const [one, two] = [...this.pointers.values()];
    return { clientX: (one.clientX + two.clientX) / 2, clientY: (one.clientY + two.clientY) / 2, apart: Math.max(1, Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY)) };
  }

  move(event) {
    if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, event);
    const { drag } = this;
    this.pointer = this.toImage(event);
    if (!drag) {
      if (event.pointerType !== "touch") this.handlers.hover(...this.pointer);
      if (DRAWS.includes(this.scene.tool)) this.draw();
      return;
    }
    if (drag.kind === "pinch") {
      if (this.pointers.size < 2) return;
      const to = this.spread();
      this.x += to.clientX - drag.from.clientX;
      this.y += to.clientY - drag.from.clientY;
      this.zoom(to.apart / drag.from.apart, to);
      drag.from = to;
      return;
    }
    const dx = event.clientX - drag.start[0], dy = event.clientY - drag.start[1];
    drag.moved ||= Math.hypot(dx, dy) > DRAG;
    drag.to = this.pointer;
    if (drag.kind === "stroke") drag.line.push(...(event.getCoalescedEvents?.() ?? [event]).map((one) => this.toImage(one)));
    if (drag.kind === "move" || (drag.kind === "pick" && drag.moved)) { this.x = drag.at[0] + dx; this.y = drag.at[1] + dy; this.fitted = false; }
    if (drag.moved || drag.kind === "stroke") this.draw();
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    const { drag } = this;
    if (drag?.kind === "pinch" && this.pointers.size) return; // the other finger
    this.drag = null;
    if (!drag || ["move", "pinch"].includes(drag.kind)) return;
    const { width, height } = this.image, [x, y] = drag.from.map(Math.floor), isInside = x >= 0 && y >= 0 && x < width && y < height;
    if (drag.kind === "stroke") {
      this.handlers.stroke(drag.line, drag.add, event);
    } else if (drag.moved && drag.kind === "inside") {
      const [a, b] = [drag.from, this.toImage(event)];
      const [x0, x1] = [a[0], b[0]].sort((p, q) => p - q).map((v) => Math.round(Math.min(width, Math.max(0, v))));
      const [y0, y1] = [a[1], b[1]].sort((p, q) => p - q).map((v) => Math.round(Math.min(height, Math.max(0, v))));
      if (x1 > x0 && y1 > y0) this.handlers.box(x0, y0, x1, y1, event);
    } else if (isInside && drag.kind === "pick") {
      if (!drag.moved) this.handlers.pick(...drag.from);
    } else if (isInside) {
      this.handlers.point(x, y, drag.kind === "inside", event);
    }
    this.draw();
  }

  /** Ask for a frame; however often that is asked, one is drawn. */
  draw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.paint(); });
  }

  paint() {
    const started = performance.now();
    const { context, canvas, image, scale, scene } = this, ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!image) return;
    const view = { scale, x: this.x, y: this.y, ratio, width: canvas.width, height: canvas.height };
    place(context, view);
    context.imageSmoothingEnabled = scale < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0);
    const whole = [scene.proposals, scene.kept].map((masks, index) => this.layers[index].draw(context, masks, view));
    place(context, view);
    for (const mask of scene.lit) drawMask(context, scale, mask, { alpha: 0.5, line: 3, outline: mask.proposed ? "#fff" : mask.color });
    const current = scene.current;
    if (current?.path) drawMask(context, scale, current, { alpha: 0.42, line: 2, outline: "#fff" });
    if (current) this.drawSteps(current.steps);
    if (this.drag?.moved && this.drag.kind === "inside") this.drawBox([...this.drag.from, ...this.drag.to]);
    if (DRAWS.includes(scene.tool)) this.drawBrush();
    if (whole.includes(false)) this.draw();
    this.frames = [...this.frames.slice(-199), performance.now() - started];
  }

  drawBrush() {
    const { context, drag, scale } = this, { radius, tool } = this.scene;
    if (drag?.kind === "stroke") {
      context.lineCap = context.lineJoin = "round";
      context.lineWidth = 2 * radius;
      context.strokeStyle = drag.add ? "#7be08a88" : "#ff453a88";
      context.beginPath();
      drag.line.forEach(([x, y]) => context.lineTo(x, y));
      if (drag.line.length === 1) context.lineTo(drag.line[0][0] + 0.01, drag.line[0][1]);
      context.stroke();
    }
    if (!this.pointer) return;
    context.beginPath();
    context.arc(...this.pointer, radius, 0, 7);
    context.lineWidth = 1.5 / scale;
    context.strokeStyle = tool === "brush" ? "#7be08a" : "#ff7a70";
    context.stroke();
  }

  drawSteps(steps) {
    const { context, scale } = this;
    for (const step of steps) {
      if (step.box) { this.drawBox(step.box); continue; }
      if (!step.point) continue;
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
