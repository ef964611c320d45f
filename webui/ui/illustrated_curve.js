// Lines over the calls of the net, or over anything else that has numbers; and a map of bands over the calls.
Object.assign(
  studio.illustrated,
  (({ make, draw, figure, heat, rgb, table, behind }) => {
    // Okabe and Ito's colours, in the order of their contrast on dark and light; then dashes tell lines apart.
    const LINES = ["#0091d0", "#e08a00", "#00a67d", "#d1699f"];
    const DASHES = ["none", "7 4", "2 3", "9 3 2 3"];
    const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [230, 52, 14, 12, 42];
    const NARROWEST = 240; // pixels

    // About `count` round numbers from low to high.
    function ticks(low, high, count = 4) {
      const rough = (high - low) / count || 1;
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
      const first = Math.ceil(low / step - 1e-9);
      return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
    }

    // A drawing that is as wide as there is room, drawn anew when that changes.
    class Drawing {
      constructor(about) {
        this.about = about;
        this.at = 0;
        this.svg = draw("svg", { role: "img", "aria-label": about, height: HEIGHT });
        this.element = make("figure", { class: "drawing" }, this.svg);
        new ResizeObserver(([{ contentRect }]) => this.fit(contentRect.width)).observe(this.element);
      }

      fit(width) {
        if (width < 1 || Math.abs(width - this.width) < 1) return;
        this.width = width;
        this.redraw();
        this.mark(this.at);
      }

      redraw() { if (this.width) this.lay(Math.max(NARROWEST, Math.floor(this.width))); }

      size(width) {
        this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
        this.svg.setAttribute("width", width);
      }

      axis(x, places, labels, title, width) {
        const room = Math.max(...labels.map((label) => label.length)) * 7 + 10;
        let free = -Infinity;
        const parts = places.flatMap((place, i) => {
          if (x(place) - room / 2 < free) return [];
          free = x(place) + room / 2;
          return [draw("text", { class: "tick", x: x(place), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle", text: labels[i] })];
        });
        return [...parts, draw("text", { class: "title", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle", text: title })];
      }

      // A press on the drawing goes to the nearest place.
      pressable(choose) {
        this.svg.classList.add("pressable");
        this.svg.addEventListener("click", (event) => {
          const box = this.svg.getBoundingClientRect();
          const x = ((event.clientX - box.left) / box.width) * this.svg.viewBox.baseVal.width;
          choose(this.nearest(x));
        });
      }
    }

    class Curve extends Drawing {
      // x: { title, values, labels }, lines: [{ label, values }], choose: what a press on a place does.
      constructor({ about, x, lines, choose, range, vertical = 0 }) {
        super(about);
        Object.assign(this, { x, lines, range, vertical });
        const legend = lines.length > 1 ? make("ul", { class: "legend" }, ...lines.map((line, n) => make("li", {}, swatch(n), line.label))) : null;
        const rows = x.values.map((_, i) => [x.labels[i], ...lines.map((line) => figure(line.values[i]))]);
        this.element.append(...[legend, behind(table(about, [x.title, ...lines.map((line) => line.label)], rows))].filter(Boolean));
        if (choose) this.pressable((i) => choose(i));
      }

      lay(width) {
        this.size(width);
        const { values } = this.x;
        const shown = this.lines.flatMap((line) => line.values).filter(Number.isFinite);
        const [low, high] = this.range ?? [Math.min(0, ...shown), Math.max(...shown, 1e-9) * 1.06];
        const [first, last] = [Math.min(...values), Math.max(...values)];
        this.place = (value) => (last === first ? (LEFT + width - RIGHT) / 2 : LEFT + ((value - first) / (last - first)) * (width - LEFT - RIGHT));
        this.height = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
        const rules = ticks(low, high).flatMap((tick) => [
          draw("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: this.height(tick), y2: this.height(tick) }),
          draw("text", { class: "tick", x: LEFT - 8, y: this.height(tick) + 4, "text-anchor": "end", text: `${+tick.toPrecision(6)}` }),
        ]);
        this.cursor = draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
        this.dots = this.lines.map((_, n) => draw("circle", { class: "dot", r: 5, fill: LINES[n] }));
        this.svg.replaceChildren(...rules, ...this.axis(this.place, values, this.x.labels, this.x.title, width),
          ...this.lines.map((line, n) => this.drawn(line, n)), this.cursor, ...this.dots);
      }

      drawn(line, n) {
        const points = line.values.map((value, i) => [value, i]).filter(([value]) => Number.isFinite(value));
        const path = points.map(([value, i]) => `${this.place(this.x.values[i]).toFixed(1)},${this.height(value).toFixed(1)}`).join(" ");
        return draw("polyline", { points: path, fill: "none", stroke: LINES[n], "stroke-width": 2.25, "stroke-dasharray": DASHES[n], "stroke-linejoin": "round" });
      }

      nearest(x) {
        const far = this.x.values.map((value) => Math.abs(this.place(value) - x));
        return far.indexOf(Math.min(...far));
      }

      // The scrubber is at the i-th value, or where `between` says.
      mark(i, between) {
        this.at = i;
        if (!this.cursor) return;
        const place = this.place(between ?? this.x.values[i]);
        for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, place);
        this.dots.forEach((dot, n) => {
          const value = this.lines[n].values[i];
          const seen = Number.isFinite(value) && between === undefined;
          dot.setAttribute("visibility", seen ? "visible" : "hidden");
          if (seen) for (const [name, where] of [["cx", place], ["cy", this.height(value)]]) dot.setAttribute(name, where);
        });
      }
    }

    const swatch = (n) =>
      draw("svg", { viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" },
        draw("line", { x1: 0, x2: 28, y1: 4, y2: 4, stroke: LINES[n], "stroke-width": 3, "stroke-dasharray": DASHES[n] }));

    class Waterfall extends Drawing {
      // rows: [{ label, values: one for each call, 0 to 1 }], the first at the top.
      constructor({ about, x, rows, choose }) {
        super(about);
        Object.assign(this, { x, rows });
        const scale = make("p", { class: "scale" }, make("span", { text: "0" }), make("i"), make("span", { text: "1" }));
        const cells = x.labels.map((label, i) => [label, ...rows.map((row) => figure(row.values[i]))]);
        this.element.append(scale, behind(table(about, [x.title, ...rows.map((row) => row.label)], cells)));
        this.pressable((i) => choose(i));
      }

      lay(width) {
        this.size(width);
        const { length } = this.x.values;
        const [from, cell, tall] = [LEFT + 30, (width - LEFT - 30 - RIGHT) / length, (HEIGHT - TOP - BOTTOM) / this.rows.length];
        this.place = (i) => from + (i + 0.5) * cell;
        this.column = cell;
        const cells = this.rows.flatMap((row, r) => row.values.map((value, i) =>
          draw("rect", { x: from + i * cell, y: TOP + r * tall, width: cell + 0.5, height: tall + 0.5, fill: rgb(heat(value)) },
            draw("title", { text: `Call ${i + 1}, ${row.label}: ${figure(value)}` }))));
        const names = this.rows.map((row, r) =>
          draw("text", { class: "tick", x: from - 8, y: TOP + (r + 0.5) * tall + 4, "text-anchor": "end", text: row.label }));
        this.frame = draw("rect", { class: "frame", y: TOP - 2, height: HEIGHT - TOP - BOTTOM + 4, width: cell });
        const places = this.x.values.map((_, i) => i);
        this.svg.replaceChildren(...cells, ...names, ...this.axis(this.place, places, this.x.labels, this.x.title, width + 30), this.frame);
      }

      nearest(x) { return Math.min(this.x.values.length - 1, Math.max(0, Math.round((x - this.place(0)) / this.column))); }

      mark(i) {
        this.at = i;
        this.frame?.setAttribute("x", this.place(i) - this.column / 2);
      }
    }

    return { Curve, Waterfall };
  })(studio.illustrated),
);
