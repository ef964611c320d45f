// Numbers of a grid as colours and as lines. Pure: values -> colours, values -> SVG.
studio.compare = (() => {
  // Cividis (Nunez et al. 2018, doi:10.1371/journal.pone.0199239) at five places: read alike by every eye.
  const HEAT = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [188, 175, 111], [255, 234, 70]];
  // Okabe and Ito's colours, in the order of their contrast on dark and light; then dashes tell lines apart.
  const LINES = ["#0091d0", "#e08a00", "#00a67d", "#d1699f", "#d35f1f", "#8f7ee7", "#a3912a", "#7d8a97"];
  const DASHES = ["", "7 4", "2 3"];
  const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [300, 64, 16, 14, 52];
  const [NARROWEST, WIDEST] = [280, 860]; // pixels
  const LETTER = 7; // pixels, about

  const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  // A colour for a share of 0 to 1.
  function heat(share) {
    const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
    const low = Math.min(Math.floor(at), HEAT.length - 2);
    const mixed = HEAT[low].map((from, channel) => Math.round(from + (HEAT[low + 1][channel] - from) * (at - low)));
    return `rgb(${mixed.join(" ")})`;
  }

  const scale = () => `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(heat).join(", ")})`;

  // A number as its measure is shown: see webui.grid.measures.Measure.
  function figure(measure, value) {
    if (value === undefined || value === null) return "–";
    return measure.percent ? `${(value * 100).toFixed(measure.digits)} %` : value.toFixed(measure.digits);
  }

  function range(values) {
    const found = values.filter((value) => Number.isFinite(value));
    return found.length ? [Math.min(...found), Math.max(...found)] : null;
  }

  // About `count` round numbers from low to high.
  function ticks(low, high, count = 5) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
  }

  // Lines over an axis.
  //   labels: of the axis' values. Where all are numbers, they stand at their own distances.
  //   lines: [{ label, values: number | undefined for each value of the axis }]
  //   width: pixels there are; the letters keep their size.
  function chart({ title, labels, measure, lines, width }) {
    const WIDTH = Math.min(Math.max(width, NARROWEST), WIDEST);
    const numeric = labels.length > 1 && labels.every((label) => label !== "" && Number.isFinite(Number(label)));
    const places = labels.map((label, i) => (numeric ? Number(label) : i));
    const [left, right] = [Math.min(...places), Math.max(...places)];
    const shown = range(lines.flatMap((line) => line.values));
    if (!shown) return '<p class="note">There are no numbers yet.</p>';
    const margin = (shown[1] - shown[0] || Math.abs(shown[1]) || 1) * 0.06;
    const low = shown[0] >= 0 ? Math.max(0, shown[0] - margin) : shown[0] - margin;
    const high = shown[1] + margin;
    const x = (value) => (right === left ? (LEFT + WIDTH - RIGHT) / 2 : LEFT + ((value - left) / (right - left)) * (WIDTH - LEFT - RIGHT));
    const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const parts = [];
    for (const tick of ticks(low, high)) {
      const text = measure.percent ? `${+(tick * 100).toPrecision(6)} %` : `${+tick.toPrecision(6)}`;
      parts.push(`<line class="rule" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(tick)}" y2="${y(tick)}"/>`);
      parts.push(`<text class="tick" x="${LEFT - 8}" y="${y(tick) + 4}" text-anchor="end">${text}</text>`);
    }
    const room = (WIDTH - LEFT - RIGHT) / Math.max(labels.length - 1, 1);
    const letters = Math.max(8, Math.floor(room / LETTER));
    let free = 0; // from here on, to the right
    for (const i of [...labels.keys()].sort((one, other) => places[one] - places[other])) {
      const short = labels[i].length > letters ? `${labels[i].slice(0, letters - 1)}…` : labels[i];
      const half = (short.length * LETTER) / 2;
      const middle = Math.min(Math.max(x(places[i]), LEFT - 40 + half), WIDTH - half);
      if (middle - half < free) continue; // no room beside the one before
      free = middle + half + LETTER;
      parts.push(`<text class="tick" x="${middle}" y="${HEIGHT - BOTTOM + 18}" text-anchor="middle">${escape(short)}</text>`);
    }
    const middle = (TOP + HEIGHT - BOTTOM) / 2;
    parts.push(`<text class="title" x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 8}" text-anchor="middle">${escape(title)}</text>`);
    parts.push(`<text class="title" transform="translate(14 ${middle}) rotate(-90)" text-anchor="middle">${escape(measure.label)}</text>`);
    lines.forEach((line, n) => parts.push(drawn(line, n, places, x, y, measure, labels)));
    const legend = lines.length > 1 ? `<ul class="legend">${lines.map(entry).join("")}</ul>` : "";
    const about = `${measure.label} over ${title}`;
    return `<svg width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escape(about)}">${parts.join("")}</svg>${legend}`;
  }

  const style = (n) => `stroke:${LINES[n % LINES.length]};stroke-dasharray:${DASHES[Math.floor(n / LINES.length) % DASHES.length] || "none"}`;

  function drawn(line, n, places, x, y, measure, labels) {
    const points = line.values.map((value, i) => [value, i]).filter(([value]) => Number.isFinite(value));
    const path = points.map(([value, i]) => `${x(places[i]).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const dots = points.map(([value, i]) => {
      const told = `${line.label ? `${line.label}, ` : ""}${labels[i]}: ${figure(measure, value)}`;
      return `<circle cx="${x(places[i]).toFixed(1)}" cy="${y(value).toFixed(1)}" r="3.5" style="fill:${LINES[n % LINES.length]}"><title>${escape(told)}</title></circle>`;
    });
    return `<polyline points="${path}" style="${style(n)}"/>${dots.join("")}`;
  }

  const entry = (line, n) =>
    `<li><svg viewBox="0 0 28 8" aria-hidden="true"><line x1="0" x2="28" y1="4" y2="4" style="${style(n)}"/></svg>${escape(line.label)}</li>`;

  return { escape, heat, scale, figure, range, chart };
})();
