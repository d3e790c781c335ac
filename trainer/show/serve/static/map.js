// The map of all shapes: near each other where the student describes them alike.

import { Raster, drawer, gestures } from "./raster.js";

const HOME = { x: 0, y: 0, zoom: 1 };
const REACH = 14;  // CSS px around a click
const CORNERS = 60;  // of a lasso, as it stands in a link

export class Plane {
  /** Called: `chosen` with a shape, `lassoed` with a polygon, `hovered` with a shape or -1 and where, `moved`. */
  constructor(canvas, { chosen, lassoed, hovered, moved }) {
    this.canvas = canvas;
    this.raster = new Raster(canvas);
    this.view = { ...HOME };
    this.places = new Int32Array(0); this.xy = new Float32Array(0); this.of = new Map();
    this.colors = []; this.category = []; this.listed = null; this.current = -1;
    this.ground = [255, 255, 255]; this.mark = "#2b6cb0";
    this.lassoing = false; this.lasso = []; this.polygon = [];
    this.draw = drawer(() => this.paint());
    const move = changes => { Object.assign(this.view, changes); this.draw(); moved(); };
    this.home = () => move(HOME);
    this.near = (by, x, y) => {
      const [ax, ay] = this.world(x ?? canvas.clientWidth / 2, y ?? canvas.clientHeight / 2), zoom = Math.max(0.5, Math.min(60, this.view.zoom * by)), kept = this.view.zoom / zoom;
      move({ zoom, x: ax + (this.view.x - ax) * kept, y: ay + (this.view.y - ay) * kept });
    };
    gestures(canvas, {
      begin: (x, y, event) => { this.drawing = this.lassoing || event.shiftKey; this.lasso = this.drawing ? [this.world(x, y)] : []; },
      drag: (dx, dy, x, y) => {
        if (this.drawing) { this.lasso.push(this.world(x, y)); this.draw(); return; }
        const unit = this.unit(); move({ x: this.view.x - dx / unit, y: this.view.y + dy / unit });
      },
      zoom: (by, x, y) => this.near(by, x, y),
      end: still => { const drawn = this.lasso; this.lasso = []; if (this.drawing && !still && drawn.length > 2) lassoed(thinned(drawn)); this.drawing = false; },
      click: (x, y) => { const found = this.nearest(x, y); if (found >= 0) chosen(this.places[found]); },
      hover: (x, y) => { const found = x < 0 ? -1 : this.nearest(x, y); hovered(found < 0 ? -1 : this.places[found], x, y); },
    });
    new ResizeObserver(this.draw).observe(canvas);
  }

  /** Which shapes lie where: their numbers [M] and positions [2 M] within [-1, 1]. */
  load(places, xy) {
    Object.assign(this, { places, xy, of: new Map(Array.from(places, (place, i) => [place, i])) });
    this.draw();
  }

  /** CSS px of one unit. */
  unit() { return Math.min(this.canvas.clientWidth, this.canvas.clientHeight) / 2 / 1.06 * this.view.zoom; }
  screen(x, y) { const unit = this.unit(); return [this.canvas.clientWidth / 2 + (x - this.view.x) * unit, this.canvas.clientHeight / 2 - (y - this.view.y) * unit]; }
  world(x, y) { const unit = this.unit(); return [this.view.x + (x - this.canvas.clientWidth / 2) / unit, this.view.y - (y - this.canvas.clientHeight / 2) / unit]; }

  paint() {
    const raster = this.raster;
    raster.begin(this.ground);
    const unit = this.unit() * raster.scale, [mx, my] = [raster.width / 2 - this.view.x * unit, raster.height / 2 + this.view.y * unit];
    const radius = Math.max(1, Math.round(2 * raster.scale * Math.min(2.5, Math.sqrt(this.view.zoom) * (this.places.length < 3000 ? 1.6 : 1))) / 2);
    const [gr, gg, gb] = this.ground, faded = this.listed ? 0.82 : 0;
    for (let i = 0; i < this.places.length; i++) {
      const [r, g, b] = this.colors[this.category[this.places[i]]], inside = !this.listed || this.listed.has(this.places[i]), away = inside ? 0 : faded;
      raster.dot(mx + this.xy[2 * i] * unit, my - this.xy[2 * i + 1] * unit, +inside, r + (gr - r) * away, g + (gg - g) * away, b + (gb - b) * away, this.listed && inside ? radius + 1 : radius);
    }
    raster.end();
    this.outline(this.lasso.length ? this.lasso : this.polygon);
    this.ring();
  }

  outline(polygon) {
    if (!polygon.length) return;
    const pen = this.raster.context; pen.beginPath();
    for (const [x, y] of polygon) { const [sx, sy] = this.screen(x, y); pen.lineTo(sx * this.raster.scale, sy * this.raster.scale); }
    pen.closePath(); pen.lineWidth = 1.5 * this.raster.scale; pen.strokeStyle = this.mark; pen.stroke();
  }

  ring() {
    const i = this.of.get(this.current);
    if (i === undefined) return;
    const [x, y] = this.screen(this.xy[2 * i], this.xy[2 * i + 1]), pen = this.raster.context;
    pen.beginPath(); pen.arc(x * this.raster.scale, y * this.raster.scale, 9 * this.raster.scale, 0, 7);
    pen.lineWidth = 2.5 * this.raster.scale; pen.strokeStyle = this.mark; pen.stroke();
  }

  /** Which of the map's shapes lies at a place of the canvas, listed ones first; -1 for none. */
  nearest(x, y) {
    let best = -1, least = REACH;
    for (let i = 0; i < this.places.length; i++) {
      const [sx, sy] = this.screen(this.xy[2 * i], this.xy[2 * i + 1]), gap = Math.hypot(sx - x, sy - y) + (this.listed && !this.listed.has(this.places[i]) ? REACH / 2 : 0);
      if (gap < least) [best, least] = [i, gap];
    }
    return best;
  }

  /** The nearest shape from one to the left, right, up or down. */
  towards(place, dx, dy) {
    const from = this.of.get(place); let best = -1, least = Infinity;
    if (from === undefined) return this.places[0] ?? -1;
    for (let i = 0; i < this.places.length; i++) {
      const x = this.xy[2 * i] - this.xy[2 * from], y = this.xy[2 * i + 1] - this.xy[2 * from + 1], along = x * dx + y * dy, beside = Math.abs(x * dy - y * dx);
      if (i !== from && along > beside && along + beside < least) [best, least] = [i, along + beside];
    }
    return best < 0 ? -1 : this.places[best];
  }

  /** The shapes within a polygon, in the map's order. */
  within(polygon) {
    const found = [];
    for (let i = 0; i < this.places.length; i++) {
      const x = this.xy[2 * i], y = this.xy[2 * i + 1]; let inside = false;
      for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
        const [xa, ya] = polygon[a], [xb, yb] = polygon[b];
        if ((ya > y) !== (yb > y) && x < xa + (y - ya) / (yb - ya) * (xb - xa)) inside = !inside;
      }
      if (inside) found.push(this.places[i]);
    }
    return found;
  }
}

function thinned(polygon) {
  const step = Math.max(1, polygon.length / CORNERS);
  return Array.from({ length: Math.ceil(polygon.length / step) }, (_, i) => polygon[Math.floor(i * step)].map(v => Math.round(v * 1000) / 1000));
}
