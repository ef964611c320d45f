// What the canvas is made of: lines with fewer points, where the source is on screen, and strokes as pixels.
studio.canvas = (() => {
  const TINT = "#f43f5e";
  const LAYER = 2048; // pixels: longest side of a layer
  const CLOSEST = 16; // screen pixels for one of the source, or this many times the whole picture
  const TOLERANCE = 0.4; // source pixels; with the rounding to tenths no stroke is off by half a pixel

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const tenth = (value) => Math.round(value * 10) / 10;

  // How far a point is from the line between two others.
  function distance([x, y], [x1, y1], [x2, y2]) {
    const [dx, dy] = [x2 - x1, y2 - y1];
    const along = clamp(((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy || 1), 0, 1);
    return Math.hypot(x - x1 - along * dx, y - y1 - along * dy);
  }

  // Ramer 1972, Douglas and Peucker 1973: no place of the path is further than the tolerance from what is left.
  function simplified(points) {
    const kept = new Set([0, points.length - 1]);
    const spans = [[0, points.length - 1]];
    while (spans.length) {
      const [first, last] = spans.pop();
      let [furthest, split] = [TOLERANCE, null];
      for (let i = first + 1; i < last; i++) {
        const off = distance(points[i], points[first], points[last]);
        if (off > furthest) [furthest, split] = [off, i];
      }
      if (split === null) continue;
      kept.add(split);
      spans.push([first, split], [split, last]);
    }
    return points.filter((_, i) => kept.has(i)).map((point) => point.map(tenth));
  }

  // Which part of the source is seen: `zoom` times the whole picture, with `centre` (source pixels) in the middle.
  // All else follows from how large the surface is just now.
  class View {
    constructor(surface) {
      this.surface = surface;
      this.show(0, 0);
    }

    show(width, height) {
      Object.assign(this, { width, height, zoom: 1, centre: [width / 2, height / 2] });
    }

    get size() { return [this.surface.clientWidth, this.surface.clientHeight]; }
    get middle() { return this.size.map((side) => side / 2); }
    get whole() { return Math.min(this.size[0] / this.width, this.size[1] / this.height); }
    get scale() { return this.whole * this.zoom; } // screen pixels for one of the source

    // Where the source's corner is on the surface.
    get origin() { return this.middle.map((half, axis) => half - this.centre[axis] * this.scale); }

    at(event) {
      const box = this.surface.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    toSource(place) {
      const { origin, scale } = this;
      return place.map((value, axis) => (value - origin[axis]) / scale);
    }

    // Bring what is at `from` on the surface to `to`, `factor` times as large. The frame that the whole picture
    // fitted stays full of picture, and so nobody gets lost.
    move(from, to, factor = 1) {
      const held = this.toSource(from);
      this.zoom = clamp(this.zoom * factor, 1, Math.max(CLOSEST, CLOSEST / this.whole));
      this.centre = [this.width, this.height].map((side, axis) => {
        const half = side / 2 / this.zoom;
        return clamp(held[axis] + (this.middle[axis] - to[axis]) / this.scale, half, side - half);
      });
    }
  }

  // What was drawn, as pixels: two sheets in the source's proportions, on which the unit is the source's pixel.
  class Layers {
    constructor(width, height) {
      Object.assign(this, { width, height });
      this.paint = this.sheet();
      this.mask = this.sheet();
    }

    sheet() {
      const scale = LAYER / Math.max(this.width, this.height);
      const [width, height] = [this.width, this.height].map((side) => Math.max(1, Math.round(side * scale)));
      const pen = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
      pen.scale(width / this.width, height / this.height);
      pen.lineCap = pen.lineJoin = "round";
      return pen;
    }

    // A greyscale mask as a tint: how light it is becomes how much it covers.
    tinted(image) {
      const pen = this.sheet();
      pen.drawImage(image, 0, 0, this.width, this.height);
      const data = pen.getImageData(0, 0, pen.canvas.width, pen.canvas.height);
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(TINT.slice(at, at + 2), 16));
      const pixels = new Uint32Array(data.data.buffer); // alpha, blue, green, red
      for (let i = 0; i < pixels.length; i++) pixels[i] = (pixels[i] << 24) | (blue << 16) | (green << 8) | red;
      pen.putImageData(data, 0, 0);
      return pen.canvas;
    }

    // A stroke, or what it has from its point number `from` on.
    draw({ kind, color, size, points }, from = 0) {
      const path = new Path2D();
      if (points.length === 1) path.arc(...points[0], size / 2, 0, 2 * Math.PI);
      else points.slice(from).forEach((point) => path.lineTo(...point));
      for (const pen of kind === "erase" ? [this.paint, this.mask] : [this[kind]]) {
        pen.globalCompositeOperation = kind === "erase" ? "destination-out" : "source-over";
        pen.fillStyle = pen.strokeStyle = kind === "paint" ? color : TINT;
        pen.lineWidth = size;
        if (points.length === 1) pen.fill(path);
        else pen.stroke(path);
      }
    }

    redraw(base, strokes) {
      for (const pen of [this.paint, this.mask]) {
        pen.globalCompositeOperation = "source-over";
        pen.clearRect(0, 0, this.width, this.height);
      }
      if (base) this.mask.drawImage(base, 0, 0, this.width, this.height);
      for (const stroke of strokes) this.draw(stroke);
    }
  }

  return { clamp, simplified, View, Layers };
})();
