// A cell full size, with its neighbours on the arrow keys; and two cells against each other. Modal dialogs: the
// browser keeps the focus in them.
Object.assign(
  studio.compare,
  (({ escape, figure }) => {
    const BLINK = 700; // milliseconds a picture is seen: slower than any flicker that could harm (WCAG 2.2, 2.3.1)
    const WIPE = 50; // pixels
    const MODES = [["slider", "Slider"], ["beside", "Side by side"], ["difference", "Difference"], ["blink", "Blink"]];

    // What is the same stays: the focus in it, the selection, and what a screen reader has said.
    function put(part, html) {
      if (part.shown !== html) part.innerHTML = part.shown = html;
    }

    // What both have in common: Esc and a click beside it close, keys do not reach the page below.
    class Dialog {
      constructor(root, kind, label) {
        this.dialog = Object.assign(document.createElement("dialog"), { className: `grid-dialog ${kind}` });
        this.dialog.setAttribute("aria-label", label);
        root.append(this.dialog);
        this.dialog.addEventListener("keydown", (event) => {
          event.stopPropagation();
          if (event.key === "Escape") {
            event.preventDefault();
            this.close();
          } else this.key(event);
        });
        this.dialog.addEventListener("click", (event) => {
          if (event.target === this.dialog) return this.close();
          const button = event.target.closest("[data-do]");
          if (button) this.click(button.dataset.do, button);
        });
        this.dialog.addEventListener("close", () => this.closed());
      }

      get open() { return this.dialog.open; }
      key() {}
      closed() {}
      find(selector) { return this.dialog.querySelector(selector); }
      close() { this.dialog.close(); }
    }

    class Viewer extends Dialog {
      constructor(board) {
        super(board.root, "viewer", "Picture, full size");
        this.board = board;
        this.dialog.innerHTML = `
          <div class="shown"><img alt=""><button class="icon" data-do="close" aria-label="Close">✕</button>
            <button class="icon turn" data-do="left" aria-label="Picture to the left">←</button>
            <button class="icon turn" data-do="right" aria-label="Picture to the right">→</button></div>
          <div class="about"><h3 aria-live="polite"></h3>
            <div class="deeds"><button data-do="star"></button><button data-do="pick"></button>
              <button data-do="again">Recompute</button></div>
            <p class="label">Send it to</p><div class="deeds" data-part="targets"></div>
            <dl></dl>
            <div class="infotext"><p class="label">Its settings, as they are inside the file</p>
              <button data-do="copy">Copy</button><pre tabindex="0" aria-label="Settings inside the file"></pre></div>
            <p class="hint">Arrow keys: neighbours<span> · Page keys: other pages</span> · S: star · C: pick · Esc: back</p></div>`;
        this.listen(this.find(".shown"));
      }

      // A finger that wipes over the picture goes to the neighbour.
      listen(shown) {
        let from = null;
        shown.addEventListener("pointerdown", (event) => (from = event.pointerType === "touch" ? event : null));
        shown.addEventListener("pointerup", (event) => {
          const [right, down] = from ? [event.clientX - from.clientX, event.clientY - from.clientY] : [0, 0];
          if (Math.abs(right) > WIPE && Math.abs(right) > 2 * Math.abs(down)) this.turn(right < 0 ? 1 : -1, 0, 0);
          from = null;
        });
      }

      show(index) {
        this.index = index;
        this.told();
        if (!this.open) this.dialog.showModal();
        this.find("[data-do=close]").focus();
      }

      // Say and show what there is of the cell by now.
      told() {
        const { board, index } = this;
        const cell = board.cell(index) ?? {};
        const image = this.find("img");
        const running = board.isRunning(index) && board.status.preview;
        const source = cell.url ?? (running || "");
        if (image.getAttribute("src") !== source) source ? (image.src = source) : image.removeAttribute("src");
        image.alt = board.named(index);
        image.style.setProperty("--width", `${cell.width ?? board.plan.width}px`);
        put(this.find("h3"), escape(board.named(index) || "Picture"));
        put(this.find("dl"), board.facts(index).map(([name, value]) => `<div><dt>${escape(name)}</dt><dd>${escape(value)}</dd></div>`).join(""));
        this.tell(board.infotext(index));
        const starred = board.isStarred(index);
        const star = this.find("[data-do=star]");
        star.textContent = starred ? "★ Starred" : "☆ Star";
        star.setAttribute("aria-pressed", starred);
        const picked = board.picks.includes(String(index));
        this.find("[data-do=pick]").textContent = picked ? "Picked to compare" : "Pick to compare";
        this.find("[data-do=pick]").setAttribute("aria-pressed", picked);
        this.find("[data-do=again]").textContent = cell.error ? "Try again" : "Recompute";
        const targets = [{ name: "settings", label: "Settings alone" }, ...board.plan.targets];
        put(this.find("[data-part=targets]"), targets.map(({ name, label }) => `<button data-do="use" data-target="${name}">${escape(label)}</button>`).join(""));
        for (const button of this.dialog.querySelectorAll("[data-do=star], [data-do=pick], [data-do=use]")) button.disabled = !cell.url;
        this.find(".hint span").hidden = board.plan.axes[2].labels.length < 2;
        for (const [way, by] of [["left", -1], ["right", 1]]) this.find(`[data-do=${way}]`).disabled = !board.neighbour(index, by, 0, 0);
      }

      tell(text) {
        put(this.find("pre"), escape(text));
        this.find(".infotext").hidden = !text;
      }

      async copy(button) {
        const text = this.find("pre");
        try {
          await navigator.clipboard.writeText(text.textContent);
        } catch { // the browser has no clipboard for pages without TLS
          getSelection().selectAllChildren(text);
          document.execCommand("copy");
        }
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      }

      turn(...by) {
        const next = this.board.neighbour(this.index, ...by);
        if (!next) return;
        this.board.goTo(next);
        this.index = next;
        this.told();
      }

      key(event) {
        const way = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [0, 0, -1], PageDown: [0, 0, 1] }[event.key];
        if (way) {
          event.preventDefault();
          this.turn(...way);
        } else if (event.ctrlKey || event.metaKey || event.altKey) return;
        else if (event.key === "s") this.click("star");
        else if (event.key === "c") this.click("pick");
      }

      click(what, button) {
        const { board, index } = this;
        if (what === "close") return this.close();
        if (what === "left") this.turn(-1, 0, 0);
        if (what === "right") this.turn(1, 0, 0);
        if (what === "star") board.star(index);
        if (what === "pick") board.pick(index);
        if (what === "again") board.again([index]);
        if (what === "copy") return this.copy(button);
        if (what === "use") {
          this.close();
          return board.use(index, button.dataset.target);
        }
        if (what === "pick" && board.picks.length === 2) return this.close();
        this.told();
      }

      closed() { this.board.table.focus(this.index); }
    }

    class Versus extends Dialog {
      mode = "slider";

      constructor(board) {
        super(board.root, "versus", "Two pictures compared");
        this.board = board;
        const modes = MODES.map(([name, label]) => `<button data-do="mode" data-mode="${name}">${label}</button>`).join("");
        this.dialog.innerHTML = `
          <div class="top"><div class="deeds">${modes}</div>
            <label class="gain">Stronger <select aria-label="How much stronger the difference is shown"><option value="1">× 1<option value="4" selected>× 4<option value="16">× 16</select></label>
            <button class="icon" data-do="close" aria-label="Close">✕</button></div>
          <div class="pair"><figure><img alt=""><figcaption></figcaption></figure><figure><img alt=""><figcaption></figcaption></figure></div>
          <input type="range" min="0" max="100" value="50" aria-label="Where the first picture ends">
          <p class="names"></p>`;
        this.pair = this.find(".pair");
        this.range = this.find("input");
        this.range.addEventListener("input", () => this.at(this.range.value));
        this.pair.addEventListener("pointerdown", (event) => this.drag(event));
        this.pair.addEventListener("click", () => this.mode === "blink" && this.flip());
        this.pair.addEventListener("pointermove", (event) => event.buttons && this.drag(event));
        this.find("select").addEventListener("change", (event) => this.pair.style.setProperty("--gain", event.target.value));
      }

      show(one, other) {
        this.both = [one, other];
        [...this.pair.querySelectorAll("figure")].forEach((figure, n) => {
          const cell = this.board.cell(this.both[n]);
          Object.assign(figure.querySelector("img"), { src: cell.url, alt: this.board.named(this.both[n]) });
          figure.querySelector("figcaption").textContent = `${"AB"[n]}: ${this.board.named(this.both[n])}`;
        });
        const [cell] = this.both.map((index) => this.board.cell(index));
        this.pair.style.setProperty("--ratio", `${cell.width} / ${cell.height}`);
        this.pair.style.setProperty("--shape", cell.width / cell.height);
        this.find(".names").textContent = this.both.map((index, n) => `${"AB"[n]}: ${this.board.named(index)}`).join("  ·  ");
        this.at(50);
        this.turn(this.mode);
        if (!this.open) this.dialog.showModal();
        this.find(`[data-mode=${this.mode}]`).focus();
      }

      turn(mode) {
        this.mode = mode;
        this.dialog.dataset.mode = mode;
        for (const button of this.dialog.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === mode);
        this.range.hidden = mode !== "slider";
        this.find(".gain").hidden = mode !== "difference";
        clearInterval(this.clock);
        this.pair.classList.remove("second");
        if (mode === "blink" && !matchMedia("(prefers-reduced-motion: reduce)").matches) this.clock = setInterval(() => this.flip(), BLINK);
      }

      flip() { this.pair.classList.toggle("second"); }

      at(percent) {
        this.range.value = percent;
        this.pair.style.setProperty("--at", `${this.range.value}%`);
      }

      drag(event) {
        if (this.mode !== "slider") return;
        const box = this.pair.getBoundingClientRect();
        this.at((100 * (event.clientX - box.left)) / box.width);
        event.preventDefault();
      }

      click(what, button) {
        if (what === "close") this.close();
        if (what === "mode") this.turn(button.dataset.mode);
      }

      key(event) {
        const mode = MODES[Number(event.key) - 1];
        if (mode) return this.turn(mode[0]);
        const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
        if (by && this.mode === "slider" && event.target !== this.range) this.at(Number(this.range.value) + by);
      }

      closed() {
        clearInterval(this.clock);
        this.board.table.focus(this.both[0]);
      }
    }

    return { Viewer, Versus };
  })(studio.compare),
);
