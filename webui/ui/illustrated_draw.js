// What the panels of the Illustrated tab are made of: elements, texts with their terms, numbers, maps. A person's words
// come in as text alone. No style is written into markup: an exported page does not allow it.
studio.illustrated = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const TERM = /\[\[([^\]|]+)(?:\|([^\]]+))?\]\]|\{(\w+)\}/g;
  // Cividis (Nunez et al. 2018, doi:10.1371/journal.pone.0199239) at five places: read alike by every eye.
  const HEAT = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [188, 175, 111], [255, 234, 70]];

  // An element. `given` are attributes; of them text and class are what they say, and on... are listeners.
  function make(tag, given = {}, ...children) {
    return filled(document.createElement(tag), given, children);
  }

  function draw(tag, given = {}, ...children) {
    return filled(document.createElementNS(SVG, tag), given, children);
  }

  function filled(element, { text, ...given }, children) {
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(given)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  // A text of webui.ui.glossary: its terms can be asked what they mean, its numbers are filled in.
  function written(text, facts = {}) {
    const parts = [];
    let from = 0;
    for (const { 0: found, 1: shown, 2: term, 3: name, index } of text.matchAll(TERM)) {
      parts.push(text.slice(from, index));
      parts.push(name ? number(String(facts[name] ?? "?")) : asked(shown, term ?? shown));
      from = index + found.length;
    }
    return [...parts, text.slice(from)];
  }

  // What is filled in stands out, unless it is half a sentence.
  const number = (text) => (text.split(" ").length > 3 ? text : make("b", { class: "number", text }));
  const asked = (shown, term) =>
    make("dfn", { tabindex: 0, class: "term", "data-term": term, "aria-describedby": described(term), text: shown });
  const described = (term) => `illustrated-${term.replace(/\W+/g, "-")}`;

  // Three significant digits, as people write them.
  function figure(value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
      const [number, power] = value.toExponential(digits - 1).split("e");
      return `${Number(number)} × 10${[...String(Number(power))].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻").join("")}`;
    }
    return String(Number(value.toPrecision(digits)));
  }

  const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);
  const seconds = (value) => (value < 1 ? `${figure(1000 * value)} ms` : `${figure(value)} s`);

  function bytes(count) {
    const power = Math.min(3, Math.floor(Math.log2(Math.max(count, 1)) / 10));
    return `${figure(count / 1024 ** power)} ${["bytes", "KiB", "MiB", "GiB"][power]}`;
  }

  // A colour for a share of 0 to 1, [red, green, blue].
  function heat(share) {
    const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
    const low = Math.min(Math.floor(at), HEAT.length - 2);
    return HEAT[low].map((from, channel) => Math.round(from + (HEAT[low + 1][channel] - from) * (at - low)));
  }

  const rgb = (parts) => `rgb(${parts.join(" ")})`;

  // Little-endian numbers of a kind, from base64.
  function unpacked(Kind, text) {
    const binary = atob(text);
    const data = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) data[i] = binary.charCodeAt(i);
    return new Kind(data.buffer);
  }

  // Fill a canvas of rows x columns; colour(i) -> [red, green, blue, alpha] of its i-th place.
  function paint(canvas, [rows, columns], colour) {
    if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const [red, green, blue, alpha = 255] = colour(i);
      image.data.set([red, green, blue, alpha], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }

  // A picture with its name under it.
  const captioned = (picture, caption, note = "") =>
    make("figure", {}, picture, make("figcaption", {}, make("b", { text: caption }), note && make("span", { text: note })));

  // Rows as a table; of each row the first cell names it.
  function table(caption, heads, rows) {
    const cell = (value, i) => make(i ? "td" : "th", i ? { text: value } : { scope: "row", text: value });
    return make("table", {}, make("caption", { text: caption }),
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", text: head })))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell)))));
  }

  // The same that a drawing shows, as numbers.
  const behind = (...parts) =>
    make("details", {}, make("summary", { text: "As a table" }), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, ...parts));

  return { make, draw, written, described, figure, percent, seconds, bytes, heat, rgb, unpacked, paint, captioned, table, behind };
})();
