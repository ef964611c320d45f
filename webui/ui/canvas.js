// The drawing canvas: masks and paint over a picture. Strokes are kept in pixels of the source, whatever its size
// on screen; what the value holds is told in canvas.py. Four parts: the view (where the source is on screen), the
// layers (strokes as pixels), the board (what a person does, and undoes) and the ways for a picture to come in.
studio.canvas = (() => {
  const EMPTY = { source: "", url: "", width: 0, height: 0, mask: "", mask_url: "", strokes: [] };
  const TINT = "#f43f5e";
  const TINT_OPACITY = 0.5;
  const LAYER = 2048; // longest side of a layer
  const TOLERANCE = 0.4; // source pixels; with the rounding to tenths no stroke is off by half a pixel
  const MOST_POINTS = 10000; // of a stroke, and then it goes on as another
  const MOST_STROKES = 2000;
  const MOST_UNDOS = 500;
  const CLOSEST = 16; // screen pixels for one of the source, or this many times the whole picture

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const tenth = (value) => Math.round(value * 10) / 10;

  // Gradio's page makes each array and object of a value reactive, ten thousands of points too, unless it is of a
  // class of its own.
  class Value {
    constructor(value) { Object.assign(this, value); }
    toJSON() { return { ...this }; }
  }

  // Geometry

  function distance([x, y], [x1, y1], [x2, y2]) { // from a point to a line from 1 to 2
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
  class View {
    constructor(surface) {
      this.surface = surface;
      this.show(0, 0);
    }

    show(width, height) {
      Object.assign(this, { width, height, zoom: 1, centre: [width / 2, height / 2] });
    }

    get whole() { // screen pixels for a source pixel, with the whole picture in sight
      return Math.min(this.surface.clientWidth / this.width, this.surface.clientHeight / this.height);
    }

    get scale() { return this.whole * this.zoom; }

    get origin() { // where the source's corner is, in screen pixels from the surface's
      const { clientWidth, clientHeight } = this.surface;
      return [clientWidth / 2 - this.centre[0] * this.scale, clientHeight / 2 - this.centre[1] * this.scale];
    }

    onSurface(event) {
      const box = this.surface.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    toSource([x, y]) {
      const [left, top] = this.origin;
      return [(x - left) / this.scale, (y - top) / this.scale];
    }

    // Bring the place of the source at `from` to `to` (both on the surface), `factor` times as large.
    move(from, to, factor = 1) {
      const held = this.toSource(from);
      this.zoom = clamp(this.zoom * factor, 1, Math.max(CLOSEST, CLOSEST / this.whole));
      const { clientWidth, clientHeight } = this.surface;
      const centre = [held[0] + (clientWidth / 2 - to[0]) / this.scale, held[1] + (clientHeight / 2 - to[1]) / this.scale];
      this.centre = [this.inside(centre[0], this.width, clientWidth), this.inside(centre[1], this.height, clientHeight)];
    }

    // The picture fills the surface as far as it can.
    inside(centre, side, seen) {
      const half = Math.min(seen / this.scale / 2, side / 2);
      return clamp(centre, half, side - half);
    }
  }

  // What was drawn, as pixels: two sheets in the source's proportions, drawn on in pixels of the source.
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

    // A greyscale mask as a tint: its lightness becomes the opacity.
    tinted(image) {
      const pen = this.sheet();
      pen.drawImage(image, 0, 0, this.width, this.height);
      const data = pen.getImageData(0, 0, pen.canvas.width, pen.canvas.height);
      const pixels = new Uint32Array(data.data.buffer); // alpha, blue, green, red
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(TINT.slice(at, at + 2), 16));
      const tint = (blue << 16) | (green << 8) | red;
      for (let i = 0; i < pixels.length; i++) pixels[i] = (pixels[i] << 24) | tint;
      pen.putImageData(data, 0, 0);
      return pen.canvas;
    }

    draw({ kind, color, size, points }, from = 0) {
      for (const pen of kind === "erase" ? [this.paint, this.mask] : [this[kind]]) {
        pen.globalCompositeOperation = kind === "erase" ? "destination-out" : "source-over";
        pen.fillStyle = pen.strokeStyle = kind === "paint" ? color : TINT;
        pen.lineWidth = size;
        pen.beginPath();
        if (points.length === 1) pen.arc(...points[0], size / 2, 0, 2 * Math.PI);
        for (const point of points.length === 1 ? [] : points.slice(from)) pen.lineTo(...point);
        points.length === 1 ? pen.fill() : pen.stroke();
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

  class Board {
    constructor(root, give) {
      Object.assign(this, { root, give, value: EMPTY, past: [], future: [], pointers: new Map() });
      Object.assign(this, { layers: null, picture: null, base: null, stroke: null, gesture: false, space: false });
      this.tools = { sketch: "paint", inpaint: "mask" };
      this.surface = root.querySelector("canvas");
      this.screen = this.surface.getContext("2d");
      this.ring = root.querySelector(".ring");
      this.video = root.querySelector("video");
      this.color = root.querySelector("input[type=color]");
      this.slider = root.querySelector("input[type=range]");
      this.view = new View(this.surface);
      this.root.querySelector("[data-do=pick]").hidden = !window.EyeDropper;
      this.listen();
    }

    listen() {
      const { root, surface } = this;
      const on = (target, type, method, options) => target.addEventListener(type, method.bind(this), options);
      on(root, "click", this.click);
      on(this.slider, "input", () => this.resize(this.widest ** this.slider.value));
      on(this.color, "input", () => this.use("paint"));
      on(surface, "pointerdown", this.down);
      on(surface, "pointermove", this.move);
      on(surface, "pointerup", this.up);
      on(surface, "pointercancel", this.up);
      on(surface, "pointerleave", () => (this.ring.hidden = true));
      on(surface, "mousedown", (event) => event.preventDefault()); // no scrolling with the middle button
      on(surface, "contextmenu", (event) => this.pointers.size && event.preventDefault());
      on(surface, "wheel", this.wheel, { passive: false });
      for (const type of ["dragenter", "dragover"]) on(root, type, this.dragged);
      on(root, "dragleave", (event) => root.contains(event.relatedTarget) || root.classList.remove("dropping"));
      on(root, "drop", this.dropped);
      new ResizeObserver(() => this.paintSoon()).observe(surface);
    }

    // The value: what Gradio has, and what was before

    receive(value) { // from the server
      const same = value.source !== "" && value.source === this.value.source;
      this.stroke = null;
      this.past = same ? [...this.past, this.value] : [];
      this.future = [];
      this.say("");
      this.follow(value);
    }

    change(value, drawn = false) { // by the person
      this.past = [...this.past, this.value].slice(-MOST_UNDOS);
      this.future = [];
      this.follow(value, drawn);
      this.give(value);
    }

    back(from, to) {
      this.finish();
      if (!from.length) return;
      to.push(this.value);
      this.follow(from.pop());
      this.give(this.value);
    }

    follow(value, drawn = false) {
      const before = this.value;
      this.value = value;
      if (value.source !== before.source) this.open();
      if (value.url !== before.url) this.load("picture", "url", (image) => image);
      if (value.mask_url !== before.mask_url) this.load("base", "mask_url", (image) => this.layers.tinted(image));
      if (!drawn) this.redraw();
      this.tell();
    }

    open() {
      const { source, width, height } = this.value;
      this.layers = source ? new Layers(width, height) : null;
      if (!source) return;
      if (this.view.width !== width || this.view.height !== height) this.resize(Math.min(width, height) / 14);
      this.view.show(width, height);
    }

    async load(part, key, made) {
      const url = this.value[key];
      this[part] = null;
      if (!url) return;
      const image = Object.assign(new Image(), { src: url });
      const failed = await image.decode().then(() => false, () => true);
      if (this.value[key] !== url) return;
      if (failed) this.say("The picture could not be shown here.");
      else this[part] = made(image);
      this.redraw();
    }

    // Drawing

    get mode() { return this.root.dataset.mode; }
    get tool() { return this.tools[this.mode]; }
    get widest() { return Math.max(this.value.width, this.value.height, 4) / 2; }

    begin(event) {
      if (this.value.strokes.length >= MOST_STROKES) return this.say("That is as many strokes as there can be.");
      const kind = event.button === 5 ? "erase" : this.tool; // 5: the other end of a pen
      const color = kind === "paint" ? this.color.value : "#ffffff";
      this.stroke = { kind, color, size: this.brush, points: [] };
      this.extend(event);
    }

    extend(event) {
      const events = event.getCoalescedEvents?.() ?? [];
      const { points } = this.stroke;
      const from = Math.max(points.length - 1, 0);
      for (const each of events.length ? events : [event]) points.push(this.view.toSource(this.view.onSurface(each)));
      this.layers.draw(this.stroke, from);
      if (points.length >= MOST_POINTS) {
        const next = { ...this.stroke, points: [points.at(-1)] };
        this.finish();
        this.stroke = next;
      }
      this.paintSoon();
    }

    finish() {
      if (!this.stroke) return;
      const stroke = { ...this.stroke, points: simplified(this.stroke.points) };
      this.stroke = null;
      this.change({ ...this.value, strokes: [...this.value.strokes, stroke] }, true);
    }

    abandon() {
      if (!this.stroke) return;
      this.stroke = null;
      this.redraw();
    }

    redraw() {
      this.layers?.redraw(this.base, this.value.strokes);
      this.paintSoon();
    }

    paintSoon() {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = null;
        this.paint();
      });
    }

    paint() {
      const { surface, screen, view, layers } = this;
      const [width, height] = [surface.clientWidth, surface.clientHeight].map((side) => Math.round(side * devicePixelRatio));
      if (!layers || !width || !height) return;
      if (surface.width !== width || surface.height !== height) Object.assign(surface, { width, height });
      screen.setTransform(1, 0, 0, 1, 0, 0);
      screen.clearRect(0, 0, width, height);
      screen.scale(width / surface.clientWidth, height / surface.clientHeight);
      screen.translate(...view.origin);
      screen.scale(view.scale, view.scale);
      screen.imageSmoothingQuality = "high";
      const put = (image) => image && screen.drawImage(image, 0, 0, view.width, view.height);
      put(this.picture);
      put(layers.paint.canvas);
      screen.globalAlpha = TINT_OPACITY;
      if (this.mode === "inpaint" && !this.root.classList.contains("unveiled")) put(layers.mask.canvas);
      screen.globalAlpha = 1;
    }

    // Pointers: one draws; two, the middle button, and any while Space is held move the picture

    down(event) {
      if (!this.value.source) return;
      this.surface.focus({ preventScroll: true });
      this.surface.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.view.onSurface(event));
      if (this.pointers.size > 1 || this.space || event.button === 1) {
        this.abandon();
        this.gesture = true;
      } else if (event.button === 0 || event.button === 5) this.begin(event);
    }

    move(event) {
      this.hover(event);
      if (!this.pointers.has(event.pointerId)) return;
      const before = this.grip;
      this.pointers.set(event.pointerId, this.view.onSurface(event));
      if (this.gesture) this.look(before.at, this.grip.at, this.grip.spread / before.spread);
      else if (this.stroke) this.extend(event);
    }

    up(event) {
      if (!this.pointers.delete(event.pointerId)) return;
      if (!this.pointers.size) this.gesture = false;
      if (event.type === "pointerup") this.finish();
      else this.abandon();
    }

    get grip() { // the middle of all pointers, and how far apart they are
      const [[x, y], other] = this.pointers.values();
      if (!other) return { at: [x, y], spread: 1 };
      return { at: [(x + other[0]) / 2, (y + other[1]) / 2], spread: Math.hypot(x - other[0], y - other[1]) || 1 };
    }

    hover(event) {
      const [x, y] = this.view.onSurface(event);
      const size = Math.max(this.brush * this.view.scale, 3);
      this.ring.hidden = event.pointerType === "touch" || this.gesture || this.space;
      Object.assign(this.ring.style, { width: `${size}px`, height: `${size}px` });
      this.ring.style.transform = `translate(${x - size / 2}px, ${y - size / 2}px)`;
      this.hovered = event;
    }

    wheel(event) {
      if (!event.ctrlKey && !event.altKey) return;
      event.preventDefault();
      const at = this.view.onSurface(event);
      if (event.ctrlKey) this.look(at, at, Math.exp(-clamp(event.deltaY, -50, 50) / 100));
      else this.step(-Math.sign(event.deltaY));
    }

    look(from, to, factor = 1) {
      this.view.move(from, to, factor);
      this.tell();
      this.paintSoon();
    }

    zoom(factor) {
      const middle = [this.surface.clientWidth / 2, this.surface.clientHeight / 2];
      this.look(middle, middle, factor);
    }

    // Buttons and keys

    click(event) {
      const button = event.target.closest("button");
      if (!button || button.getAttribute("aria-disabled") === "true") return;
      if (button.dataset.tool) this.use(button.dataset.tool);
      else DEEDS[button.dataset.do](this);
    }

    key(event) {
      const outside = event.target.closest?.("input, textarea, select, [contenteditable]");
      const here = this.surface.matches(":hover") || this.root.contains(document.activeElement);
      if (!this.value.source && !this.past.length) return;
      if (!here || (outside && !this.root.contains(outside))) return;
      const control = (event.ctrlKey || event.metaKey) && !event.altKey;
      const name = `${control ? "control " : ""}${control && event.shiftKey ? "shift " : ""}${event.key.toLowerCase()}`;
      if (name === " " && this.surface.matches(":hover")) this.hold(true);
      else if (KEYS[name]) KEYS[name](this);
      else return;
      event.preventDefault();
    }

    hold(space) {
      this.space = space;
      this.root.classList.toggle("holding", space);
      if (space) this.ring.hidden = true;
    }

    use(tool) {
      if (tool !== "mask" || this.mode === "inpaint") this.tools[this.mode] = tool;
      this.tell();
    }

    step(direction) { this.resize(this.brush + direction * Math.max(1, this.brush * 0.15)); }

    resize(size) {
      this.brush = clamp(Math.round(size), 1, Math.round(this.widest));
      this.slider.value = Math.log(this.brush) / Math.log(this.widest);
      this.slider.setAttribute("aria-valuetext", `${this.brush} pixels`);
      this.root.querySelector("output").value = `${this.brush} px`;
      if (this.hovered && !this.ring.hidden) this.hover(this.hovered);
    }

    clear() { // what this mode shows
      const { strokes } = this.value;
      if (this.mode === "inpaint") this.change({ ...this.value, strokes: [], mask: "", mask_url: "" });
      else this.change({ ...this.value, strokes: strokes.filter(({ kind }) => kind !== "paint") });
    }

    fit() {
      this.view.show(this.value.width, this.value.height);
      this.tell();
      this.paintSoon();
    }

    veil() {
      this.root.classList.toggle("unveiled");
      this.tell();
      this.paintSoon();
    }

    async pick() {
      const picked = await new EyeDropper().open().catch(() => null); // given up with Esc
      if (picked) this.color.value = picked.sRGBHex;
      this.use("paint");
    }

    turn(mode) {
      this.finish();
      this.root.dataset.mode = mode;
      this.tell();
      this.paintSoon();
    }

    say(text) {
      this.root.querySelector(".said").textContent = text;
      clearTimeout(this.said);
      if (text) this.said = setTimeout(() => this.say(""), 8000);
    }

    // Show how things stand: to eyes, and to those who listen.
    tell() {
      const { root, value, past, future, mode, tool } = this;
      const all = (selector, done) => root.querySelectorAll(selector).forEach(done);
      const pressed = (button, yes) => button.setAttribute("aria-pressed", yes);
      const idle = (name, yes) => all(`[data-do=${name}]`, (button) => button.setAttribute("aria-disabled", yes));
      root.dataset.state = value.source ? "picture" : "empty";
      root.dataset.tool = tool;
      all("button[data-tool]", (button) => pressed(button, button.dataset.tool === tool));
      all("[data-do=veil]", (button) => pressed(button, !root.classList.contains("unveiled")));
      root.querySelector("[data-back]").hidden = !past.length;
      idle("undo", !past.length);
      idle("redo", !future.length);
      const drawn = this.drawn();
      idle("clear", !drawn.length);
      const size = `${value.width} × ${value.height}`;
      root.querySelector(".words").textContent = [size, ...drawn, `${Math.round(this.view.zoom * 100)} %`].join(" · ");
      this.surface.setAttribute("aria-label", `Picture of ${size} pixels. Drawn on it: ${drawn.join(", ") || "nothing"}`);
    }

    drawn() { // in words, as far as this mode shows it
      const words = { mask: ["mask stroke", "mask strokes"], paint: ["painted stroke", "painted strokes"] };
      const parts = this.mode === "inpaint" && this.value.mask ? ["a mask"] : [];
      for (const [kind, [one, more]] of Object.entries(words)) {
        const count = this.value.strokes.filter((stroke) => stroke.kind === kind).length;
        if (count && (kind === "paint" || this.mode === "inpaint")) parts.push(`${count} ${count === 1 ? one : more}`);
      }
      return parts;
    }

    // Pictures coming in: into the page's own upload fields, which check and store them

    take(file, field = "source-file") {
      const input = uploadField(field);
      if (file.type && !file.type.startsWith("image/")) return this.say("That is not a picture.");
      if (!input) return this.say("The picture before this one is still on its way.");
      const files = new DataTransfer();
      files.items.add(file);
      input.files = files.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
      this.say(`Taking in ${file.name}…`);
    }

    press(id, otherwise) {
      const button = studio.button(id);
      if (!button || button.disabled) this.say(otherwise);
      else button.click();
    }

    dragged(event) {
      if (!studio.holdsFiles(event)) return;
      event.preventDefault();
      this.root.classList.add("dropping");
      for (const target of this.root.querySelectorAll("[data-drop]")) {
        target.classList.toggle("here", target.dataset.drop === this.target(event));
      }
    }

    dropped(event) {
      this.root.classList.remove("dropping");
      if (!studio.holdsFiles(event)) return;
      event.preventDefault();
      this.take(event.dataTransfer.files[0], `${this.target(event)}-file`);
    }

    target(event) { // a mask, if there is a picture for it
      const wanted = event.shiftKey || event.target.closest?.("[data-drop=mask]");
      return wanted && this.value.source && this.mode === "inpaint" ? "mask" : "source";
    }

    pasted(event) {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      const text = event.target.closest?.("input, textarea") && event.clipboardData.getData("text/plain");
      if (!file || text || !this.root.getClientRects().length) return;
      event.preventDefault();
      this.take(file);
    }

    async film() {
      if (!navigator.mediaDevices) return this.say("Browsers give the camera to https pages and to this computer's own.");
      const wanted = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
      try {
        this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
      } catch (error) {
        return this.say(NO_CAMERA[error.name] ?? "The camera could not be started.");
      }
      this.root.dataset.camera = "on";
      this.root.querySelector("[data-do=shoot]").focus();
    }

    async shoot() {
      const { videoWidth: width, videoHeight: height } = this.video;
      if (!width) return;
      const still = Object.assign(document.createElement("canvas"), { width, height });
      still.getContext("2d").drawImage(this.video, 0, 0);
      this.unfilm();
      const blob = await new Promise((done) => still.toBlob(done, "image/png"));
      this.take(new File([blob], "camera.png", { type: "image/png" }));
    }

    unfilm() {
      for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
      this.video.srcObject = null;
      delete this.root.dataset.camera;
    }
  }

  const NO_CAMERA = {
    NotAllowedError: "The browser was not allowed to use the camera.",
    NotFoundError: "No camera was found.",
    NotReadableError: "The camera is in use by another program.",
  };

  const uploadField = (id) => document.querySelector(`#${id} input[type=file]`);

  const DEEDS = {
    undo: (board) => board.back(board.past, board.future),
    redo: (board) => board.back(board.future, board.past),
    clear: (board) => board.clear(),
    remove: (board) => board.change(EMPTY),
    veil: (board) => board.veil(),
    pick: (board) => board.pick(),
    in: (board) => board.zoom(1.5),
    out: (board) => board.zoom(1 / 1.5),
    fit: (board) => board.fit(),
    choose: () => uploadField("source-file")?.click(),
    mask: () => uploadField("mask-file")?.click(),
    blank: (board) => board.press("blank-sheet", "There is no blank sheet here."),
    last: (board) => board.press("use-last", "There is no finished picture yet."),
    camera: (board) => board.film(),
    shoot: (board) => board.shoot(),
    stop: (board) => board.unfilm(),
  };

  const KEYS = {
    "control z": DEEDS.undo,
    "control shift z": DEEDS.redo,
    "control y": DEEDS.redo,
    "[": (board) => board.step(-1),
    "]": (board) => board.step(1),
    m: (board) => board.use("mask"),
    p: (board) => board.use("paint"),
    e: (board) => board.use("erase"),
    0: DEEDS.fit,
  };

  // One board at a time: the last that was drawn. Listeners outside it are here, so that none is left behind.
  let board = null;
  let mode = "inpaint";

  // From Gradio: the component's element, its properties and their changes (see gr.HTML's js_on_load).
  function attach(element, props, trigger, watch) {
    board = new Board(element.querySelector(".board"), (value) => {
      props.value = new Value(value);
      if (!value.source) trigger("clear");
    });
    const read = () => board.receive({ ...EMPTY, ...JSON.parse(JSON.stringify(props.value || EMPTY)) });
    const here = board;
    watch("value", () => here === board && read());
    board.turn(mode);
    read();
  }

  // "sketch" shows the paint alone, "inpaint" the mask too.
  function turn(name) {
    mode = name;
    board?.turn(name);
  }

  // Whatever is clicked, Generate above all, is to find the stroke finished. Runs before the button's own listener.
  document.addEventListener("click", () => board?.finish(), true);
  document.addEventListener("keydown", (event) => board?.key(event));
  document.addEventListener("keyup", (event) => {
    if (event.key !== " " || !board?.space) return;
    event.preventDefault(); // or the button that has the focus is pressed
    board.hold(false);
  });
  document.addEventListener("paste", (event) => board?.pasted(event));
  window.addEventListener("blur", () => board?.hold(false));
  window.addEventListener("resize", () => board?.paintSoon());

  return { attach, mode: turn };
})();
