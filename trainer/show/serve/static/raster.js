// Dots and triangles on a canvas, drawn here rather than by a GPU, so that they look and move the same without one.

const LARGEST = 1000;  // px a side of what is drawn; the browser scales it up on finer screens

/** "#rrggbb" -> [r, g, b] */
export const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
const packed = (r, g, b) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;

/** A colour for each of many categories: hues a golden angle apart, in three lightnesses. */
export function palette(count, dark) {
  return Array.from({ length: count }, (_, i) => {
    const hue = i * 137.508 % 360, light = (dark ? [0.62, 0.75, 0.52] : [0.45, 0.58, 0.34])[i % 3], chroma = 0.62 * Math.min(light, 1 - light);
    return [0, 8, 4].map(n => { const k = (n + hue / 30) % 12; return Math.round(255 * (light - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); });
  });
}

export class Raster {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.disks = new Map();
  }

  /** Take the canvas's size on the page, and fill it with a colour. */
  begin(ground) {
    const finer = Math.min(devicePixelRatio || 1, LARGEST / Math.max(this.canvas.clientWidth, this.canvas.clientHeight, 1));
    const width = Math.max(Math.round(this.canvas.clientWidth * finer), 1), height = Math.max(Math.round(this.canvas.clientHeight * finer), 1);
    this.scale = finer;
    if (this.width !== width || this.height !== height || !this.image) {
      [this.canvas.width, this.canvas.height] = [this.width, this.height] = [width, height];
      this.image = this.context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
      this.depth = new Float32Array(width * height);
    }
    this.ground = ground;
    this.pixels.fill(packed(...ground));
    this.depth.fill(-1e9);
  }

  end() { this.context.putImageData(this.image, 0, 0); }

  /** Half widths of a disk's rows; -1 where it has none. */
  disk(radius) {
    if (!this.disks.has(radius)) {
      const reach = Math.ceil(radius), spans = [];
      for (let y = -reach; y <= reach; y++) { const rest = (radius + 0.25) ** 2 - y * y; spans.push(rest < 0 ? -1 : Math.floor(Math.sqrt(rest))); }
      this.disks.set(radius, spans);
    }
    return this.disks.get(radius);
  }

  /** A dot at (x, y) px; of several the one of the largest z is seen, and of equal ones the last. */
  dot(x, y, z, r, g, b, radius) {
    const spans = this.disk(radius), reach = (spans.length - 1) / 2, cx = Math.round(x), cy = Math.round(y), color = packed(r, g, b);
    if (cx < -reach || cy < -reach || cx > this.width + reach || cy > this.height + reach) return;
    for (let k = 0; k < spans.length; k++) {
      const row = cy + k - reach;
      if (row < 0 || row >= this.height) continue;
      const last = Math.min(cx + spans[k], this.width - 1);
      for (let at = row * this.width + Math.max(cx - spans[k], 0), end = row * this.width + last; at <= end; at++) {
        if (z >= this.depth[at]) { this.depth[at] = z; this.pixels[at] = color; }
      }
    }
  }

  /** A triangle of corners p, q, s: [x, y, z] px in arrays `at` from these places on. */
  triangle(at, p, q, s, r, g, b) {
    const x0 = at[p], y0 = at[p + 1], x1 = at[q], y1 = at[q + 1], x2 = at[s], y2 = at[s + 1], area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0);
    if (Math.abs(area) < 1e-9) return;
    const left = Math.max(Math.ceil(Math.min(x0, x1, x2)), 0), right = Math.min(Math.floor(Math.max(x0, x1, x2)), this.width - 1);
    const top = Math.max(Math.ceil(Math.min(y0, y1, y2)), 0), bottom = Math.min(Math.floor(Math.max(y0, y1, y2)), this.height - 1);
    const color = packed(r, g, b), z0 = at[p + 2], z1 = at[q + 2], z2 = at[s + 2];
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const u = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area, v = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area, w = 1 - u - v;
        if (u < 0 || v < 0 || w < 0) continue;
        const z = u * z0 + v * z1 + w * z2, place = y * this.width + x;
        if (z >= this.depth[place]) { this.depth[place] = z; this.pixels[place] = color; }
      }
    }
  }
}

/** Draw at the next frame, once however often it is asked for. */
export function drawer(draw) {
  let waiting = false;
  return () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
}

/** Pointers on a canvas: one drags, two or the wheel zoom, one that stays where it was clicks. Positions are CSS px. */
export function gestures(canvas, { drag, zoom, click, hover, begin, end }) {
  const fingers = new Map(); let moved = 0;
  const place = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, event); moved = 0;
    if (fingers.size === 1) begin?.(...place(event), event);
  });
  canvas.addEventListener("pointermove", event => {
    const last = fingers.get(event.pointerId);
    if (!last) { hover?.(...place(event), event); return; }
    const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1], gap = at => Math.hypot(at.clientX - other.clientX, at.clientY - other.clientY);
      zoom(gap(event) / Math.max(gap(last), 1), ...place(event));
    } else drag(dx, dy, ...place(event));
    fingers.set(event.pointerId, event);
  });
  canvas.addEventListener("pointerup", event => {
    if (!fingers.delete(event.pointerId)) return;
    const still = moved <= 4;
    end?.(still);
    if (still) click?.(...place(event));
  });
  canvas.addEventListener("pointercancel", event => { fingers.delete(event.pointerId); end?.(true); });
  canvas.addEventListener("pointerleave", () => hover?.(-1, -1));
  canvas.addEventListener("wheel", event => { event.preventDefault(); zoom(Math.exp(-event.deltaY * 0.0015), ...place(event)); }, { passive: false });
}
