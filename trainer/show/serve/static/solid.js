// One shape in three dimensions: points, a surface, or points coloured by attention.

import { Raster, drawer, gestures } from "./raster.js";

export const HOME = { yaw: 0.61, pitch: 0.38, zoom: 1 };
const LIGHT = [0.35, 0.6, 0.72];  // towards the right, up, towards the viewer
const FADE = 0.4;  // how much of the ground's colour the farthest dots take

export class Solid {
  /** `turned` is called when the camera moves, `clicked` with the number of the point in front. */
  constructor(canvas, { turned, clicked }) {
    this.raster = new Raster(canvas);
    this.camera = { ...HOME };
    this.shown = null;
    this.ground = [255, 255, 255];
    this.draw = drawer(() => this.paint());
    const move = changes => { Object.assign(this.camera, changes); this.draw(); turned(); };
    this.turn = (yaw, pitch) => move({ yaw: this.camera.yaw + yaw, pitch: Math.max(-1.5, Math.min(1.5, this.camera.pitch + pitch)) });
    this.near = by => move({ zoom: Math.max(0.5, Math.min(12, this.camera.zoom * by)) });
    this.home = () => move(HOME);
    gestures(canvas, {
      drag: (dx, dy) => this.turn(-dx * 0.008, dy * 0.008),
      zoom: by => this.near(by),
      click: (x, y) => { const found = this.front(x, y); if (found >= 0) clicked(found); },
    });
    new ResizeObserver(this.draw).observe(canvas);
  }

  /** What to draw: { points [3 N], colors [3 N], radius } or { vertices, faces, colors }; null for nothing. */
  show(shown) { this.shown = shown; this.draw(); }

  /** Positions [3 N] -> px and depth, by the camera: orthographic. */
  project(positions) {
    const { yaw, pitch, zoom } = this.camera, [sy, cy, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    const size = Math.min(this.raster.width, this.raster.height) / 2 / 1.08 * zoom, at = new Float32Array(positions.length);
    for (let i = 0; i < positions.length; i += 3) {
      const x = positions[i], y = positions[i + 1], z = positions[i + 2], back = sy * x + cy * z;
      at[i] = this.raster.width / 2 + (cy * x - sy * z) * size;
      at[i + 1] = this.raster.height / 2 - (cp * y - sp * back) * size;
      at[i + 2] = (sp * y + cp * back) * size;
    }
    this.size = size;
    return at;
  }

  paint() {
    this.raster.begin(this.ground);
    if (this.shown?.points) this.paintPoints();
    else if (this.shown?.faces) this.paintFaces();
    this.raster.end();
  }

  paintPoints() {
    const { points, colors, radius } = this.shown, at = this.project(points), dot = Math.max(Math.round(radius * this.size * 2) / 2, 0.5), [gr, gg, gb] = this.ground;
    for (let i = 0; i < at.length; i += 3) {
      const far = Math.max(0, Math.min(1, (1 - at[i + 2] / this.size) / 2)) * FADE;
      this.raster.dot(at[i], at[i + 1], at[i + 2], colors[i] + (gr - colors[i]) * far, colors[i + 1] + (gg - colors[i + 1]) * far, colors[i + 2] + (gb - colors[i + 2]) * far, dot);
    }
  }

  paintFaces() {
    const { vertices, faces, colors } = this.shown, at = this.project(vertices);
    for (let i = 0; i < faces.length; i += 3) {
      const [p, q, s] = [3 * faces[i], 3 * faces[i + 1], 3 * faces[i + 2]];
      const ax = at[q] - at[p], ay = at[p + 1] - at[q + 1], az = at[q + 2] - at[p + 2], bx = at[s] - at[p], by = at[p + 1] - at[s + 1], bz = at[s + 2] - at[p + 2];
      const nx = ay * bz - az * by, ny = az * bx - ax * bz, nz = ax * by - ay * bx, length = Math.hypot(nx, ny, nz) || 1;
      // From either side: many meshes wind their faces at random.
      const lit = 0.45 + 0.55 * Math.abs(nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2]) / length;
      const [r, g, b] = [0, 1, 2].map(k => Math.min(255, (colors[p + k] + colors[q + k] + colors[s + k]) / 3 * lit));
      this.raster.triangle(at, p, q, s, r, g, b);
    }
  }

  /** The number of the point nearest to the viewer at a place of the canvas; -1 where there is none. */
  front(x, y) {
    if (!this.shown?.points || !this.raster.width) return -1;
    const at = this.project(this.shown.points), [px, py] = [x * this.raster.scale, y * this.raster.scale], reach = this.raster.width / 40; let best = -1;
    for (let i = 0; i < at.length; i += 3) {
      if (Math.hypot(at[i] - px, at[i + 1] - py) < reach && (best < 0 || at[i + 2] > at[best + 2])) best = i;
    }
    return best < 0 ? -1 : best / 3;
  }
}
