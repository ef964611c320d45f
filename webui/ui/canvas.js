// The drawing canvas: masks and paint over a picture, in pixels of the source whatever its size on screen. What the
// value holds is told in canvas.py. The page uses `studio.canvas.mode` and `studio.canvas.value`.
Object.assign(
  studio.canvas,
  (({ clamp, simplified, View, Layers, Incoming }) => {
    const EMPTY = { source: "", url: "", width: 0, height: 0, mask: "", mask_url: "", strokes: [] };
    const TINT_OPACITY = 0.5;
    const MOST_POINTS = 10000; // of a stroke, as webui.strokes takes them; then it goes on as another
    const MOST_STROKES = 2000;
    const MOST_UNDOS = 500;
    const WIDEST = 8192; // source pixels

    // Svelte makes every array of a page's values reactive, the points of strokes by the ten thousand too, unless
    // the value is of a class of its own. Sent to the server, it is a plain object.
    class Value {
      constructor(value) { Object.assign(this, value); }
      toJSON() { return { ...this }; }
    }

    class Board {
      value = EMPTY;
      past = []; // values, to undo and redo
      future = [];
      tools = { sketch: "paint", inpaint: "mask" };
      pointers = new Map(); // of those held down: where they are on the surface
      stroke = null; // being drawn
      gesture = false; // pointers move the picture instead
      space = false;
      layers = null;
      picture = null;
      base = null; // the mask that was there before the strokes, tinted

      constructor(root, give) {
        Object.assign(this, { root, give });
        const find = (selector) => root.querySelector(selector);
        [this.surface, this.ring, this.slider] = ["canvas", ".ring", "input[type=range]"].map(find);
        [this.color, this.width] = ["input[type=color]", "output"].map(find);
        this.screen = this.surface.getContext("2d");
        this.view = new View(this.surface);
        this.incoming = new Incoming(root, (text) => this.say(text), () => this.value.source && this.mode === "inpaint");
        find("[data-do=pick]").hidden = !window.EyeDropper;
        this.listen();
      }

      listen() {
        const { root, surface } = this;
        root.addEventListener("click", (event) => this.click(event));
        this.slider.addEventListener("input", () => this.resize(this.widest ** this.slider.value));
        this.color.addEventListener("input", () => this.use("paint"));
        surface.addEventListener("pointerdown", (event) => this.down(event));
        surface.addEventListener("pointermove", (event) => this.move(event));
        for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
          surface.addEventListener(type, (event) => this.up(event));
        }
        surface.addEventListener("pointerleave", () => this.hover(null));
        surface.addEventListener("mousedown", (event) => event.preventDefault()); // the middle button does not scroll
        surface.addEventListener("contextmenu", (event) => this.pointers.size && event.preventDefault());
        surface.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
        const observer = new ResizeObserver(() => this.resized());
        for (const part of [root, surface]) observer.observe(part);
      }

      // The value: as the server has it, as it was and is

      receive(value) {
        const same = value.source !== "" && value.source === this.value.source;
        this.past = same ? [...this.past, this.value] : [];
        this.future = [];
        this.stroke = null;
        this.say("");
        this.incoming.stop();
        this.follow(value);
      }

      change(value, drawn = false) {
        this.past = [...this.past, this.value].slice(-MOST_UNDOS);
        this.future = [];
        this.follow(value, drawn);
        this.give(value);
      }

      turnBack(from, to) {
        this.finish();
        to.push(this.value);
        this.follow(from.pop());
        this.give(this.value);
      }

      // Show this value, whose strokes may have been drawn already.
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
        const shown = await image.decode().then(() => true, () => false);
        if (this.value[key] !== url) return;
        if (shown) this[part] = made(image);
        else this.say("The picture could not be shown here.");
        this.redraw();
      }

      // Drawing

      get mode() { return this.root.dataset.mode; }
      get tool() { return this.tools[this.mode]; }
      get widest() { return clamp(Math.max(this.value.width, this.value.height) / 2, 2, WIDEST); }

      begin(event) {
        if (this.value.strokes.length >= MOST_STROKES) return this.say("There can be no more strokes; undo some first.");
        const kind = event.button === 5 ? "erase" : this.tool; // 5: the other end of a pen
        this.stroke = { kind, color: kind === "paint" ? this.color.value : "#ffffff", size: this.brush, points: [] };
        this.extend(event);
      }

      extend(event) {
        const { points } = this.stroke;
        const from = Math.max(points.length - 1, 0);
        const between = event.getCoalescedEvents?.() ?? [];
        for (const each of between.length ? between : [event]) points.push(this.view.toSource(this.view.at(each)));
        this.layers.draw(this.stroke, from);
        this.paintSoon();
        if (points.length < MOST_POINTS) return;
        const next = { ...this.stroke, points: [points.at(-1)] };
        this.finish();
        this.stroke = next;
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
        this.frame ??= requestAnimationFrame(() => this.paint());
      }

      paint() {
        this.frame = null;
        const { surface, screen, view, layers } = this;
        const [width, height] = view.size.map((side) => Math.round(side * devicePixelRatio));
        if (!layers || !width || !height) return;
        if (surface.width !== width || surface.height !== height) Object.assign(surface, { width, height });
        screen.resetTransform();
        screen.clearRect(0, 0, width, height);
        screen.scale(width / view.size[0], height / view.size[1]);
        screen.translate(...view.origin);
        screen.scale(view.scale, view.scale);
        screen.imageSmoothingQuality = "high";
        const put = (image) => screen.drawImage(image, 0, 0, view.width, view.height);
        if (this.picture) put(this.picture);
        put(layers.paint.canvas);
        screen.globalAlpha = TINT_OPACITY;
        if (this.mode === "inpaint" && !this.root.classList.contains("unveiled")) put(layers.mask.canvas);
        screen.globalAlpha = 1;
      }

      resized() {
        if (!this.root.clientHeight) this.incoming.stop(); // nobody sees what the camera sees
        if (this.value.source) this.tell();
        this.paintSoon();
      }

      // Pointers: one draws; two, the middle button, and any while Space is down move the picture

      down(event) {
        this.surface.focus({ preventScroll: true });
        this.surface.setPointerCapture(event.pointerId);
        this.pointers.set(event.pointerId, this.view.at(event));
        if (this.pointers.size > 1 || this.space || event.button === 1) {
          this.abandon();
          this.gesture = true;
        } else if (event.button === 0 || event.button === 5) {
          this.begin(event);
        }
      }

      move(event) {
        this.hover(event);
        if (!this.pointers.has(event.pointerId)) return;
        const before = this.grip;
        this.pointers.set(event.pointerId, this.view.at(event));
        const after = this.grip;
        if (this.gesture) this.look(before.at, after.at, after.spread / before.spread);
        else if (this.stroke) this.extend(event);
      }

      up(event) {
        if (!this.pointers.delete(event.pointerId)) return;
        if (!this.pointers.size) this.gesture = false;
        if (event.type === "pointerup") this.finish();
        else this.abandon();
      }

      get grip() { // the middle of two pointers and how far they are apart
        const [[x, y], other] = this.pointers.values();
        if (!other) return { at: [x, y], spread: 1 };
        return { at: [(x + other[0]) / 2, (y + other[1]) / 2], spread: Math.hypot(x - other[0], y - other[1]) || 1 };
      }

      hover(event) { // the brush as large as it draws
        this.pointer = event;
        this.ring.hidden = !event || event.pointerType === "touch" || this.gesture || this.space;
        if (this.ring.hidden) return;
        const size = Math.max(this.brush * this.view.scale, 3);
        const [x, y] = this.view.at(event).map((value) => `${value - size / 2}px`);
        Object.assign(this.ring.style, { width: `${size}px`, height: `${size}px`, translate: `${x} ${y}` });
      }

      wheel(event) {
        if (!event.ctrlKey && !event.altKey) return;
        event.preventDefault();
        const at = this.view.at(event);
        if (event.ctrlKey) this.look(at, at, Math.exp(-clamp(event.deltaY, -50, 50) / 100));
        else this.step(-Math.sign(event.deltaY));
      }

      look(from, to, factor = 1) {
        this.view.move(from, to, factor);
        this.hover(this.pointer);
        this.tell();
        this.paintSoon();
      }

      // Buttons and keys

      click(event) {
        const button = event.target.closest("button");
        if (!button || button.getAttribute("aria-disabled") === "true") return;
        if (button.dataset.tool) this.use(button.dataset.tool);
        else DEEDS[button.dataset.do](this);
      }

      key(event) {
        const over = this.surface.matches(":hover");
        const elsewhere = !this.root.contains(event.target) && event.target.closest?.("input, textarea, select");
        if (elsewhere || (!over && !this.root.contains(document.activeElement))) return;
        const control = (event.ctrlKey || event.metaKey) && !event.altKey;
        const name = `${control ? "control " : ""}${control && event.shiftKey ? "shift " : ""}${event.key.toLowerCase()}`;
        if (event.key === " " && over) this.hold(true);
        else if (Object.hasOwn(KEYS, name) && (this.value.source || KEYS[name] === DEEDS.undo)) KEYS[name](this);
        else return;
        event.preventDefault();
      }

      hold(space) {
        this.space = space;
        this.root.classList.toggle("holding", space);
        this.hover(this.pointer);
      }

      use(tool) {
        if (tool !== "mask" || this.mode === "inpaint") this.tools[this.mode] = tool;
        this.tell();
      }

      step(direction) {
        this.resize(this.brush + direction * Math.max(1, this.brush * 0.15));
      }

      resize(size) {
        this.brush = clamp(Math.round(size), 1, Math.floor(this.widest));
        this.slider.value = Math.log(this.brush) / Math.log(this.widest);
        this.slider.setAttribute("aria-valuetext", `${this.brush} pixels`);
        this.width.value = `${this.brush} px`;
        this.hover(this.pointer);
      }

      clear() { // what this mode shows
        const { strokes } = this.value;
        if (this.mode === "inpaint") this.change({ ...this.value, strokes: [], mask: "", mask_url: "" });
        else this.change({ ...this.value, strokes: strokes.filter(({ kind }) => kind !== "paint") });
      }

      fit() {
        this.view.show(this.value.width, this.value.height);
        this.look(this.view.middle, this.view.middle);
      }

      veil() {
        this.root.classList.toggle("unveiled");
        this.tell();
        this.paintSoon();
      }

      async pick() {
        const picked = await new EyeDropper().open().catch(() => null); // null: given up with Esc
        if (picked) this.color.value = picked.sRGBHex;
        this.use("paint");
      }

      turn(mode, tool) {
        this.finish();
        this.root.dataset.mode = mode;
        this.use(tool || this.tool);
        this.paintSoon();
      }

      // Words

      say(text) {
        this.root.querySelector(".said").textContent = text;
        clearTimeout(this.forgetting);
        if (text) this.forgetting = setTimeout(() => this.say(""), 8000);
      }

      // Show how things stand, and tell it to those who listen.
      tell() {
        const { root, value, past, future } = this;
        const set = (buttons, name, test) =>
          root.querySelectorAll(`button${buttons}`).forEach((button) => button.setAttribute(name, test(button)));
        const drawn = this.drawn();
        const size = `${value.width} × ${value.height}`;
        root.dataset.state = value.source ? "picture" : "empty";
        root.querySelector("[data-back]").hidden = !past.length;
        root.querySelector(".size-of").textContent = size;
        if (value.source) root.querySelector("[data-do=fit]").textContent = `${Math.round(this.view.scale * 100)} %`;
        this.surface.setAttribute("aria-label", `Picture, ${size} pixels. Drawn: ${drawn.join(", ") || "nothing"}.`);
        set("[data-tool]", "aria-pressed", (button) => button.dataset.tool === this.tool);
        set("[data-do=veil]", "aria-pressed", () => !root.classList.contains("unveiled"));
        set("[data-do=undo]", "aria-disabled", () => !past.length);
        set("[data-do=redo]", "aria-disabled", () => !future.length);
        set("[data-do=clear]", "aria-disabled", () => !drawn.length);
      }

      drawn() { // in words, as far as this mode shows it
        const inpaint = this.mode === "inpaint";
        const count = (kind) => this.value.strokes.filter((stroke) => stroke.kind === kind).length;
        const parts = [["mask stroke", inpaint ? count("mask") : 0], ["painted stroke", count("paint")]];
        const strokes = parts.filter(([, n]) => n).map(([name, n]) => `${n} ${name}${n > 1 ? "s" : ""}`);
        return inpaint && this.value.mask ? ["a mask", ...strokes] : strokes;
      }
    }

    const DEEDS = {
      undo: (board) => board.past.length && board.turnBack(board.past, board.future),
      redo: (board) => board.future.length && board.turnBack(board.future, board.past),
      clear: (board) => board.clear(),
      remove: (board) => board.change(EMPTY),
      veil: (board) => board.veil(),
      pick: (board) => board.pick(),
      in: (board) => board.look(board.view.middle, board.view.middle, 1.5),
      out: (board) => board.look(board.view.middle, board.view.middle, 1 / 1.5),
      fit: (board) => board.fit(),
      choose: (board) => board.incoming.choose("source"),
      mask: (board) => board.incoming.choose("mask"),
      blank: (board) => board.incoming.press("blank-sheet", "There is no blank sheet here."),
      last: (board) => board.incoming.press("use-last", "There is no finished picture yet."),
      film: (board) => board.incoming.film(),
      shoot: (board) => board.incoming.shoot(),
      stop: (board) => board.incoming.stop(),
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

    // One board at a time, the latest. Listeners outside of it are here, so that it leaves none behind.
    let board = null;
    let chosen = ["inpaint"];

    // From Gradio, once the component is there: see gr.HTML's js_on_load.
    function attach(element, props, trigger, watch) {
      const mine = new Board(element.querySelector(".board"), (value) => {
        props.value = new Value(value);
        if (!value.source) trigger("clear");
      });
      const read = () => mine.receive({ ...EMPTY, ...JSON.parse(JSON.stringify(props.value || EMPTY)) });
      board = mine;
      board.turn(...chosen);
      watch("value", read);
      read();
    }

    // "sketch" shows the paint alone, "inpaint" the mask too; each remembers its tool.
    function mode(name, tool = "") {
      chosen = [name, tool];
      board?.turn(name, tool);
    }

    // Whatever is clicked, Generate above all, finds the stroke finished: this runs before the button's own listener.
    document.addEventListener("click", () => board?.finish(), true);
    document.addEventListener("keydown", (event) => board?.key(event));
    document.addEventListener("keyup", (event) => {
      if (event.key !== " " || !board?.space) return;
      event.preventDefault(); // or a button that has the focus is pressed
      board.hold(false);
    });
    document.addEventListener("paste", (event) => board?.incoming.paste(event));
    window.addEventListener("blur", () => board?.hold(false));
    window.addEventListener("resize", () => board?.paintSoon());

    return { attach, mode, value: () => board?.value ?? EMPTY };
  })(studio.canvas),
);
