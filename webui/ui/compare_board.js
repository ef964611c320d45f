// A grid as it comes: the messages of webui.ui.runs -> what is known of each cell; and what a person does with them.
// A picture is fetched once, and a message says only what has changed.
Object.assign(
  studio.compare,
  (({ escape, Numbers, Stars, Table, Viewer, Versus }) => {
    const PATIENCE = 2000; // milliseconds for an answer, which another message may have pushed away
    const DOWNLOADS = [["page", "Sheet of this page (PNG)"], ["sheet", "Sheet of all pages (PNG)"], ["zip", "Pictures (ZIP)"],
      ["csv", "Numbers (CSV)"], ["html", "Web page (HTML)"]];

    const MARKUP = `
      <div class="grid-start"><p>The grid appears here, cell by cell, its corners first.</p><button data-do="resume" hidden></button></div>
      <div class="grid-body" hidden>
        <div class="grid-state"><div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"><span></span></div>
          <p class="headline" aria-live="polite"></p><p class="details"></p></div>
        <div class="grid-tools" role="toolbar" aria-label="Grid">
          <label>Numbers <select data-part="measure" aria-label="Numbers over the cells"></select></label>
          <label class="size">Size <input type="range" data-part="size" min="56" max="640" step="8" aria-label="Size of the pictures"></label>
          <button data-do="filter" aria-pressed="false" title="Show starred cells alone">★ only</button>
          <button data-do="chart" aria-pressed="false">Chart</button>
          <details class="menu"><summary>Download</summary><div>${DOWNLOADS.map(([what, label]) => `<button data-do="files" data-what="${what}">${label}</button>`).join("")}</div></details>
          <button data-do="all">Recompute all</button>
          <button data-do="full" aria-pressed="false">Whole window</button></div>
        <p class="grid-scale" hidden><span></span><i></i><span></span><em></em></p>
        <div class="grid-pages" role="group" hidden></div>
        <div class="grid-scroll"><table></table><p class="none" hidden>No cell of this page has a star.</p></div>
        <div class="grid-picks" role="status" hidden><p></p><button data-do="compare" class="main">Compare</button><button data-do="unpick">Clear</button></div>
        <section class="grid-chart" aria-label="Chart" hidden><div><label>Chart of <select data-part="charted"></select></label>
          <label>over <select data-part="over"></select></label></div><div data-part="drawn"></div></section>
        <div class="grid-tip" hidden></div></div>`;

    class Board {
      plan = null;
      status = {};
      cells = new Map(); // "x,y,z,k" -> what the server says of it
      impossible = new Map(); // "x,y,z" -> why
      texts = new Map(); // "x,y,z,k" -> the settings inside its picture, once they were asked for
      asked = new Map(); // "x,y,z,k" -> when they were, in milliseconds
      past = new Set(); // runs that were shown before; what first told of a new one may have been pushed away
      until = 0; // changes seen
      page = 0; // of Z
      picks = []; // keys, at most two
      full = false;
      filtered = false;

      // tell: what the server is asked, by name. changed: is called when more is known than before.
      constructor(root, tell, changed) {
        Object.assign(this, { root, tell, changed });
        root.innerHTML = MARKUP;
        this.stars = new Stars();
        this.table = new Table(this);
        this.numbers = new Numbers(this);
        this.viewer = new Viewer(this);
        this.versus = new Versus(this);
        root.addEventListener("click", (event) => this.click(event));
        document.addEventListener("click", (event) => this.closeMenu(event));
        document.addEventListener("keydown", (event) => this.leave(event), true); // before Esc stops the grid
      }

      part(name) { return this.root.querySelector(`[data-part=${name}]`); }
      button(name) { return this.root.querySelector(`.grid-body [data-do=${name}]`); }

      // What the server says

      receive(message) {
        if (message.file) return this.save(message.file);
        if (message.last) return this.offer(message.last);
        if (message.plan) this.begin(message);
        if (message.run !== this.run) return this.past.has(message.run) || this.tell.resync({ run: message.run });
        if (message.infotext) return this.learn(...message.infotext);
        if (message.since > this.until) return this.tell.resync({ run: this.run });
        const fresh = message.until > this.until || message.plan;
        this.until = Math.max(this.until, message.until);
        for (const [x, y, z, k, cell] of message.cells) {
          const key = `${[x, y, z, k]}`;
          if (!message.plan && same(this.cells.get(key), cell)) continue;
          if (this.cells.get(key)?.url !== cell.url) this.texts.delete(key);
          this.cells.set(key, cell);
          this.table.draw(key);
        }
        this.follow(message.status);
        if (fresh) this.numbers.lookSoon();
      }

      begin({ run, plan }) {
        const again = run === this.run;
        if (this.run && !again) this.past.add(this.run);
        this.past.delete(run);
        Object.assign(this, { run, plan, until: 0, cells: new Map(), impossible: new Map() });
        for (const [x, y, z, , reason] of plan.impossible) this.impossible.set(`${[x, y, z]}`, reason);
        if (!again) {
          Object.assign(this, { page: 0, picks: [], status: {}, texts: new Map(), asked: new Map() });
          this.table.sized = false;
        }
        this.root.querySelector(".grid-start").hidden = true;
        this.root.querySelector(".grid-body").hidden = false;
        this.numbers.begin(plan);
        const pages = plan.axes[2].labels.length;
        this.root.querySelector('[data-what="page"]').hidden = pages < 2;
        this.root.querySelector('[data-what="sheet"]').textContent = pages < 2 ? "Sheet (PNG)" : "Sheet of all pages (PNG)";
        this.lay();
        this.table.fit();
        this.picked();
      }

      follow(status) {
        const before = this.status;
        this.status = status;
        const set = (selector, text) => {
          const part = this.root.querySelector(selector);
          if (part.textContent !== text) part.textContent = text;
        };
        set(".grid-state .headline", status.headline);
        set(".grid-state .details", status.details);
        const bar = this.root.querySelector(".bar");
        bar.setAttribute("aria-valuenow", Math.round(100 * status.share));
        bar.firstChild.style.width = `${100 * status.share}%`;
        this.root.querySelector(".grid-state").dataset.state = status.state;
        const marked = (one) => [one?.running, ...(one?.busy ?? [])].filter(Boolean).map(String);
        for (const key of new Set([...marked(before), ...marked(status)])) this.table.draw(key);
        if (this.viewer.open) this.viewer.told();
        if (before.state !== status.state) this.changed();
      }

      learn(index, text) {
        this.texts.set(`${index}`, text);
        if (this.viewer.open) this.viewer.told();
      }

      offer({ axes, prompt }) {
        const button = this.root.querySelector(".grid-start button");
        button.hidden = false;
        button.textContent = `Go on with the last grid: ${axes}${prompt ? `, “${prompt.length > 40 ? `${prompt.slice(0, 40)}…` : prompt}”` : ""}`;
      }

      save({ url, name }) {
        this.busy(false);
        const link = Object.assign(document.createElement("a"), { href: url, download: name });
        document.body.append(link);
        link.click();
        link.remove();
      }

      busy(on) {
        const menu = this.root.querySelector(".menu");
        menu.classList.toggle("busy", on);
        menu.querySelector("summary").textContent = on ? "Preparing…" : "Download";
        clearTimeout(this.waiting);
        if (on) this.waiting = setTimeout(() => this.busy(false), 120_000);
      }

      // The pages, and the table of the one that is open

      lay() {
        const { plan, page } = this;
        const z = plan.axes[2];
        const pages = this.root.querySelector(".grid-pages");
        pages.hidden = z.labels.length < 2;
        pages.setAttribute("aria-label", z.title || "Pages");
        const tabs = z.labels.map((label, n) => `<button data-do="page" data-page="${n}" aria-pressed="${n === page}">${escape(label)}</button>`);
        pages.innerHTML = `<span>${escape(z.title)}</span>${tabs.join("")}`;
        this.table.lay();
      }

      turn(page) {
        this.page = page;
        this.lay();
        this.numbers.look();
      }

      goTo(index) {
        if (index[2] !== this.page) this.turn(index[2]);
        this.table.reveal(index);
      }

      // What there is to know of a cell

      cell(index) { return this.cells.get(`${index}`); }
      isRunning(index) { return `${this.status.running}` === `${index}`; }
      isStarred(index) { return this.stars.has(this.cell(index)?.star); }

      named(index) {
        const { axes, per_cell } = this.plan;
        const words = axes.flatMap(({ title, labels }, n) => (title ? [`${title} ${labels[index[n]]}`] : []));
        return [...words, ...(per_cell > 1 ? [`picture ${Number(index[3]) + 1}`] : [])].join(", ");
      }

      facts(index, brief = false) {
        const { axes, settings } = this.plan;
        const cell = this.cell(index) ?? {};
        const found = axes.flatMap(({ title, labels }, n) => (title ? [[title, labels[index[n]]]] : []));
        if (cell.error) found.push(["It failed", cell.error]);
        if (cell.url) {
          found.push(...this.numbers.facts(cell, brief));
          found.push(["Seed", cell.seed], ["Size", `${cell.width} × ${cell.height}`]);
          if (!brief) found.push(["Saved as", cell.name]);
        }
        const named = new Map([...found, ...settings].reverse()); // of two with one name the first
        return [...new Set([...found, ...settings].map(([name]) => name))].map((name) => [name, named.get(name)]);
      }

      // The settings inside its picture; asks for them, and is empty, until they are here.
      infotext(index) {
        const key = `${index}`;
        const text = this.texts.get(key);
        if (text === undefined && this.cell(index)?.url && Date.now() - (this.asked.get(key) ?? 0) > PATIENCE) {
          this.asked.set(key, Date.now());
          this.tell.infotext({ run: this.run, cell: index });
          setTimeout(() => this.viewer.open && this.viewer.told(), PATIENCE + 50);
        }
        return text ?? "";
      }

      // The cell so many places away, over the pictures of a cell and then to the next one; null at the edge.
      neighbour([x, y, z, k], by, down, pages) {
        const { axes, per_cell } = this.plan;
        const [width, height, depth] = axes.map(({ labels }) => labels.length);
        const at = x * per_cell + k + by;
        const next = [Math.floor(at / per_cell), y + down, z + pages];
        const inside = at >= 0 && next[0] < width && next[1] >= 0 && next[1] < height && next[2] >= 0 && next[2] < depth;
        return inside ? [...next, at % per_cell] : null;
      }

      // Stars and picks

      star(index) {
        const cell = this.cell(index);
        if (!cell?.url) return;
        this.stars.toggle(cell.star);
        this.table.draw(`${index}`);
        this.table.filter();
      }

      starred() { return [...this.cells].filter(([, cell]) => cell.url && this.stars.has(cell.star)).map(([key]) => key.split(",").map(Number)); }

      filter() {
        this.filtered = !this.filtered;
        this.button("filter").setAttribute("aria-pressed", this.filtered);
        this.table.filter();
      }

      pick(index) {
        const key = `${index}`;
        if (!this.cells.get(key)?.url) return;
        const before = this.picks;
        this.picks = before.includes(key) ? before.filter((one) => one !== key) : [...before, key].slice(-2);
        this.picked([...before, key]);
      }

      unpick() {
        const before = this.picks;
        this.picks = [];
        this.picked(before);
      }

      picked(changed = []) {
        for (const key of changed) this.table.draw(key);
        const bar = this.root.querySelector(".grid-picks");
        const [one, other] = this.picks.map((key) => this.named(key.split(",")));
        bar.hidden = !one;
        bar.querySelector("p").textContent = other ? `A: ${one}  ·  B: ${other}` : one ? `A: ${one}  ·  now pick another one` : "";
        this.button("compare").disabled = !other;
      }

      // What a person does

      click(event) {
        const button = event.target.closest("[data-do]");
        if (!button || button.closest("dialog")) return;
        const index = button.closest(".shot")?.dataset.at.split(",").map(Number);
        const deeds = {
          open: () => this.viewer.show(index),
          star: () => this.star(index),
          pick: () => this.pick(index),
          again: () => this.again([index]),
          all: () => this.all(button),
          compare: () => this.versus.show(...this.picks.map((key) => key.split(",").map(Number))),
          unpick: () => this.unpick(),
          filter: () => this.filter(),
          chart: () => this.numbers.toggle(button),
          page: () => this.turn(Number(button.dataset.page)),
          full: () => this.fill(),
          files: () => this.files(button.dataset.what),
          resume: () => this.tell.resume({}),
        };
        this.table.point(null);
        deeds[button.dataset.do]?.();
      }

      closeMenu(event) {
        const menu = this.root.querySelector(".menu");
        if (menu.open && !event?.target.closest?.(".menu summary")) menu.open = false;
      }

      // Esc closes the menu, and gives the window back, before it stops a grid.
      leave(event) {
        const menu = this.root.querySelector(".menu");
        if (event.key !== "Escape" || this.viewer.open || this.versus.open || !(menu.open || this.full)) return;
        event.preventDefault();
        event.stopPropagation();
        if (!menu.open) return this.fill();
        menu.open = false;
        menu.querySelector("summary").focus();
      }

      again(cells) { this.tell.again({ run: this.run, cells, until: this.until }); }

      use(index, target) {
        if (this.full) this.fill();
        this.tell.use({ run: this.run, cell: index, target });
      }

      files(what) {
        this.busy(true);
        this.tell.files({ run: this.run, what, page: this.page, stars: this.starred() });
      }

      // Asks once more: it may take long.
      all(button) {
        const sure = button.dataset.sure === "yes";
        const say = (text, state) => Object.assign(button, { textContent: text }).setAttribute("data-sure", state);
        clearTimeout(this.doubt);
        say("Recompute all", "");
        if (sure) return this.again(null);
        say("Recompute all: sure?", "yes");
        this.doubt = setTimeout(() => say("Recompute all", ""), 4000);
      }

      fill() {
        this.full = !this.full;
        this.root.classList.toggle("full", this.full);
        document.documentElement.classList.toggle("grid-full", this.full);
        const button = this.button("full");
        button.setAttribute("aria-pressed", this.full);
        button.textContent = this.full ? "Back to the page" : "Whole window";
        if (!this.table.sized) this.table.fit();
      }
    }

    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

    return { Board };
  })(studio.compare),
);
