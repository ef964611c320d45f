// The comparison grid as it comes: the messages of webui.ui.runs -> a table of pictures, with stars, picks, numbers and
// a chart. A picture is fetched once, and a message says only what has changed.
Object.assign(
  studio.compare,
  (({ escape, Numbers, Viewer, Versus }) => {
    const STARS = "studio-stars"; // in the browser's storage: the settings that were starred
    const MOST_STARS = 5000;
    const [SMALLEST, LARGEST] = [56, 640]; // pixels, of a picture in the grid
    const DOWNLOADS = [["page", "Sheet of this page (PNG)"], ["sheet", "Sheet of all pages (PNG)"], ["zip", "Pictures (ZIP)"],
      ["csv", "Numbers (CSV)"], ["html", "Web page (HTML)"]];

    const MARKUP = `
      <div class="grid-start"><p>The grid appears here, cell by cell, its corners first.</p><button data-do="resume" hidden></button></div>
      <div class="grid-body" hidden>
        <div class="grid-state"><div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"><span></span></div>
          <p class="headline" aria-live="polite"></p><p class="details"></p></div>
        <div class="grid-tools" role="toolbar" aria-label="Grid">
          <label>Numbers <select data-part="measure" aria-label="Numbers over the cells"></select></label>
          <label class="size">Size <input type="range" data-part="size" min="${SMALLEST}" max="${LARGEST}" step="8" aria-label="Size of the pictures"></label>
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
      until = 0; // changes seen
      page = 0; // of Z
      picks = []; // keys, at most two
      full = false;
      filtered = false;

      constructor(root, tell) {
        Object.assign(this, { root, tell });
        root.innerHTML = MARKUP;
        this.table = root.querySelector("table");
        this.scroll = root.querySelector(".grid-scroll");
        this.tip = root.querySelector(".grid-tip");
        this.stars = new Set(stored());
        this.numbers = new Numbers(this);
        this.viewer = new Viewer(this);
        this.versus = new Versus(this);
        this.listen();
      }

      part(name) { return this.root.querySelector(`[data-part=${name}]`); }
      button(name) { return this.root.querySelector(`.grid-body [data-do=${name}]`); }
      shot(key) { return this.table.querySelector(`[data-at="${key}"]`); }

      listen() {
        const { root, table } = this;
        root.addEventListener("click", (event) => this.click(event));
        root.addEventListener("keydown", (event) => this.key(event));
        document.addEventListener("keydown", (event) => this.leave(event), true); // before Esc stops the grid
        this.part("size").addEventListener("input", (event) => this.resize(Number(event.target.value), true));
        table.addEventListener("pointerover", (event) => matchMedia("(hover: hover)").matches && this.point(event.target.closest?.(".shot")));
        table.addEventListener("pointerleave", () => this.point(null));
        table.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && this.point(event.target.closest(".shot")));
        table.addEventListener("focusout", () => this.point(null));
        this.scroll.addEventListener("scroll", () => this.point(null), { passive: true });
        new ResizeObserver(() => this.sized || this.fit()).observe(this.scroll);
      }

      // What the server says

      receive(message) {
        if (message.file) return this.save(message.file);
        if (message.last) return this.offer(message.last);
        if (message.plan) this.begin(message);
        if (message.run !== this.run) return;
        if (message.since > this.until) return this.tell.resync({ run: this.run });
        const fresh = message.until > this.until || message.plan;
        this.until = Math.max(this.until, message.until);
        for (const [x, y, z, k, cell] of message.cells) {
          const key = `${[x, y, z, k]}`;
          if (!message.plan && same(this.cells.get(key), cell)) continue;
          this.cells.set(key, cell);
          this.drawCell(key);
        }
        this.follow(message.status);
        if (fresh) this.numbers.lookSoon();
      }

      begin({ run, plan }) {
        const again = run === this.run;
        Object.assign(this, { run, plan, until: 0, cells: new Map(), impossible: new Map() });
        for (const [x, y, z, , reason] of plan.impossible) this.impossible.set(`${[x, y, z]}`, reason);
        if (!again) Object.assign(this, { page: 0, picks: [], sized: false, status: {} });
        this.root.querySelector(".grid-start").hidden = true;
        this.root.querySelector(".grid-body").hidden = false;
        this.numbers.begin(plan);
        const pages = plan.axes[2].labels.length;
        this.root.querySelector('[data-what="page"]').hidden = pages < 2;
        this.root.querySelector('[data-what="sheet"]').textContent = pages < 2 ? "Sheet (PNG)" : "Sheet of all pages (PNG)";
        this.lay();
        this.fit();
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
        for (const key of new Set([...marked(before), ...marked(status)])) this.drawCell(key);
        if (this.viewer.open) this.viewer.told();
        if (before.state !== status.state) changed(); // more is known now
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

      // The table

      lay() {
        const { plan, page } = this;
        const [x, y, z] = plan.axes;
        const across = Math.ceil(Math.sqrt(plan.per_cell));
        const corner = [x.title && `${escape(x.title)} →`, y.title && `${escape(y.title)} ↓`].filter(Boolean).join("<br>");
        const columns = x.labels.map((label) => `<th scope="col"><span>${escape(label)}</span></th>`).join("");
        const rows = y.labels.map((label, j) => {
          const cells = x.labels.map((_, i) => {
            const shots = Array.from({ length: plan.per_cell }, (_, k) => `<div class="shot" data-at="${[i, j, page, k]}"></div>`);
            return `<td><div class="shots">${shots.join("")}</div></td>`;
          });
          return `<tr><th scope="row"><span>${escape(label)}</span></th>${cells.join("")}</tr>`;
        });
        const caption = z.title ? `${z.title}: ${z.labels[page]}` : "Comparison grid";
        this.table.innerHTML = `<caption>${escape(caption)}</caption><thead><tr><td>${corner}</td>${columns}</tr></thead><tbody>${rows.join("")}</tbody>`;
        this.table.style.setProperty("--across", across);
        this.table.style.setProperty("--ratio", `${plan.width} / ${plan.height}`);
        this.table.classList.toggle("bare", !y.title);
        const pages = this.root.querySelector(".grid-pages");
        pages.hidden = z.labels.length < 2;
        pages.setAttribute("aria-label", z.title || "Pages");
        const tabs = z.labels.map((label, n) => `<button data-do="page" data-page="${n}" aria-pressed="${n === page}">${escape(label)}</button>`);
        pages.innerHTML = `<span>${escape(z.title)}</span>${tabs.join("")}`;
        for (const shot of this.table.querySelectorAll(".shot")) this.drawCell(shot.dataset.at, shot);
        this.filter();
      }

      // As large as the columns fit, until a person moves the slider.
      fit() {
        if (!this.plan || !this.scroll.clientWidth) return;
        const labels = this.table.querySelector("thead td").offsetWidth;
        const count = this.plan.axes[0].labels.length;
        const across = Math.ceil(Math.sqrt(this.plan.per_cell));
        const room = (this.scroll.clientWidth - labels) / count - 10;
        const height = this.full ? innerHeight - 200 : Math.max(innerHeight - 330, 300);
        const down = Math.ceil(this.plan.per_cell / across) * Math.min(this.plan.axes[1].labels.length, 3);
        const tall = ((height / down) * this.plan.width) / this.plan.height;
        this.resize(Math.min(Math.max(Math.floor(Math.min(room / across - 4, tall)), 104), 420));
      }

      resize(size, chosen = false) {
        this.sized ||= chosen;
        this.part("size").value = size;
        this.table.style.setProperty("--size", `${size}px`);
      }

      // One picture's place: its picture or preview or why there is none; its number, star and pick.
      drawCell(key, shot = this.shot(key)) {
        if (!shot) return;
        const cell = this.cells.get(key);
        const index = key.split(",").map(Number);
        const why = this.impossible.get(`${index.slice(0, 3)}`);
        const running = this.isRunning(index);
        const waiting = (this.status.busy ?? []).some((one) => `${one}` === key);
        shot.className = `shot${cell?.url ? " there" : ""}${running ? " running" : ""}${waiting ? " waiting" : ""}${why ? " impossible" : ""}`;
        const source = running && this.status.preview ? this.status.preview : cell?.small;
        const state = JSON.stringify([Boolean(source), Boolean(cell?.url), cell?.error]);
        if (shot.dataset.state !== state) {
          const reached = shot.querySelector(".open")?.getAttribute("tabindex") ?? "-1";
          shot.dataset.state = state;
          shot.innerHTML = this.inside(index, cell, source, why);
          shot.querySelector(".open")?.setAttribute("tabindex", reached);
        }
        const image = shot.querySelector("img");
        if (image && image.getAttribute("src") !== source) image.src = source;
        if (image && !this.table.querySelector('.open[tabindex="0"]')) image.parentElement.setAttribute("tabindex", "0");
        this.mark(shot, key);
        this.numbers.tint(shot, cell);
      }

      inside(index, cell, source, why) {
        const name = escape(this.named(index));
        if (why) return `<p title="${escape(why)}">Not possible<span class="sr">: ${escape(why)}</span></p>`;
        if (cell?.error && !source) return `<p class="error">${escape(cell.error)}</p><button data-do="again">Try again</button>`;
        if (!source) return `<span class="sr">${name}: not there yet</span>`;
        return `<button class="open" data-do="open" tabindex="-1" aria-label="${name}"><img alt="" loading="lazy"></button><span class="number"></span>
          ${cell?.url ? `<button class="icon star" data-do="star" tabindex="-1" aria-label="Star"></button>
          <button class="icon pick" data-do="pick" tabindex="-1" aria-label="Pick to compare"></button>` : ""}
          ${cell?.error ? `<p class="error">${escape(cell.error)}</p>` : ""}`;
      }

      mark(shot, key) {
        const [star, pick] = [shot.querySelector(".star"), shot.querySelector(".pick")];
        if (!star) return;
        const starred = this.isStarred(key.split(","));
        star.textContent = starred ? "★" : "☆";
        star.setAttribute("aria-pressed", starred);
        const at = this.picks.indexOf(key);
        pick.textContent = at < 0 ? "⊕" : "AB"[at];
        pick.setAttribute("aria-pressed", at >= 0);
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

      // The cell so many places away, over the pictures of a cell and then to the next one; null at the edge.
      neighbour([x, y, z, k], by, down, pages) {
        const { axes, per_cell } = this.plan;
        const [width, height, depth] = axes.map(({ labels }) => labels.length);
        const at = x * per_cell + k + by;
        const next = [Math.floor(at / per_cell), y + down, z + pages];
        const inside = at >= 0 && next[0] < width && next[1] >= 0 && next[1] < height && next[2] >= 0 && next[2] < depth;
        return inside ? [...next, at % per_cell] : null;
      }

      goTo(index) {
        if (index[2] !== this.page) this.turn(index[2]);
        this.shot(`${index}`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
      }

      focus(index) { this.shot(`${index}`)?.querySelector(".open")?.focus({ preventScroll: true }); }

      turn(page) {
        this.page = page;
        this.lay();
        this.numbers.look();
      }

      // Stars and picks

      star(index) {
        const cell = this.cell(index);
        if (!cell?.url) return;
        if (!this.stars.delete(cell.star)) this.stars.add(cell.star);
        store([...this.stars].slice(-MOST_STARS));
        this.drawCell(`${index}`);
        this.filter();
      }

      starred() { return [...this.cells].filter(([, cell]) => cell.url && this.stars.has(cell.star)).map(([key]) => key.split(",").map(Number)); }

      // Starred cells alone: rows and columns without any are left out, and what is not starred fades.
      filter() {
        this.button("filter").setAttribute("aria-pressed", this.filtered);
        const shown = this.starred().filter(([, , z]) => z === this.page);
        const [columns, rows] = [0, 1].map((n) => new Set(shown.map((index) => index[n])));
        const keys = new Set(shown.map(String));
        const hides = (lines, n) => this.filtered && !lines.has(n);
        for (const row of this.table.rows) {
          const j = row.rowIndex - 1;
          row.hidden = j >= 0 && hides(rows, j);
          [...row.cells].slice(1).forEach((cell, i) => (cell.hidden = hides(columns, i)));
        }
        for (const shot of this.table.querySelectorAll(".shot")) shot.classList.toggle("out", this.filtered && !keys.has(shot.dataset.at));
        const none = this.filtered && !shown.length;
        this.table.hidden = none;
        this.root.querySelector(".none").hidden = !none;
      }

      pick(index) {
        const key = `${index}`;
        if (!this.cells.get(key)?.url) return;
        const before = this.picks;
        this.picks = before.includes(key) ? before.filter((one) => one !== key) : [...before, key].slice(-2);
        this.picked([...before, key]);
      }

      picked(changed = []) {
        for (const key of changed) this.drawCell(key);
        const bar = this.root.querySelector(".grid-picks");
        const [one, other] = this.picks.map((key) => this.named(key.split(",")));
        bar.hidden = !one;
        bar.querySelector("p").textContent = other ? `A: ${one}  ·  B: ${other}` : one ? `A: ${one}  ·  now pick another one` : "";
        this.button("compare").disabled = !other;
      }

      // Beside the pointer or the focus: what the cell is made with, and its time.
      point(shot) {
        const cell = shot && this.cells.get(shot.dataset.at);
        const index = shot?.dataset.at.split(",").map(Number);
        const why = shot && this.impossible.get(`${index.slice(0, 3)}`);
        this.tip.hidden = !(cell || why);
        if (this.tip.hidden) return;
        const facts = why ? [["Left out", why]] : this.facts(index, true).slice(0, 14);
        this.tip.innerHTML = `<dl>${facts.map(([name, value]) => `<div><dt>${escape(name)}</dt><dd>${escape(value)}</dd></div>`).join("")}</dl>`;
        const [box, tip] = [shot.getBoundingClientRect(), this.tip.getBoundingClientRect()];
        const left = box.right + 8 + tip.width < innerWidth ? box.right + 8 : Math.max(8, box.left - 8 - tip.width);
        this.tip.style.left = `${left}px`;
        this.tip.style.top = `${Math.max(8, Math.min(box.top, innerHeight - tip.height - 8))}px`;
      }

      // What a person does

      click(event) {
        const menu = this.root.querySelector(".menu");
        if (menu.open && !event.target.closest("summary")) menu.open = false;
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
          unpick: () => {
            const before = this.picks;
            this.picks = [];
            this.picked(before);
          },
          filter: () => {
            this.filtered = !this.filtered;
            this.filter();
          },
          chart: () => this.numbers.toggle(button),
          page: () => this.turn(Number(button.dataset.page)),
          full: () => this.fill(),
          files: () => this.files(button.dataset.what),
          resume: () => this.tell.resume({}),
        };
        this.point(null);
        deeds[button.dataset.do]?.();
      }

      key(event) {
        const shot = event.target.closest(".shot");
        if (!shot || event.ctrlKey || event.metaKey || event.altKey) return;
        const index = shot.dataset.at.split(",").map(Number);
        const way = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0] }[event.key];
        if (way) {
          event.preventDefault();
          const next = this.neighbour(index, ...way);
          const open = next && this.shot(`${next}`)?.querySelector(".open");
          if (!open) return;
          this.table.querySelector('.open[tabindex="0"]')?.setAttribute("tabindex", "-1");
          open.setAttribute("tabindex", "0");
          open.focus();
        } else if (event.key === "s") this.star(index);
        else if (event.key === "c") this.pick(index);
      }

      leave(event) {
        if (event.key !== "Escape" || !this.full || this.viewer.open || this.versus.open) return;
        event.preventDefault();
        event.stopPropagation();
        this.fill();
      }

      again(cells) { this.tell.again({ run: this.run, cells, until: this.until }); }
      use(index, target) { this.full && this.fill(); this.tell.use({ run: this.run, cell: index, target }); }

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
        if (!this.sized) this.fit();
      }
    }

    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

    function stored() {
      try {
        const found = JSON.parse(localStorage.getItem(STARS) ?? "[]");
        return Array.isArray(found) ? found : [];
      } catch {
        return [];
      }
    }

    function store(stars) {
      try {
        localStorage.setItem(STARS, JSON.stringify(stars));
      } catch {} // private windows: the stars last as long as the page
    }

    // From Gradio, once the component is there: see gr.HTML's js_on_load.
    function attach(element, props, watch, tell) {
      const board = new Board(element.querySelector(".grid-app"), tell);
      const read = () => props.value && board.receive(JSON.parse(JSON.stringify(props.value)));
      watch("value", read);
      read();
    }

    const isOpen = () => document.querySelector('#tab-compare-button[aria-selected="true"]') !== null;

    // On a phone the grid is below what varies: go and see it fill.
    document.addEventListener("click", (event) => {
      if (event.target.closest?.("#grid-run") && matchMedia("(max-width: 860px)").matches) {
        document.querySelector("#comparison").scrollIntoView({ behavior: "smooth" });
      }
    });

    // Something of the form or the axes has changed: plan again, if it is seen. Waits for the last of many.
    let planning;
    function changed() {
      clearTimeout(planning);
      planning = setTimeout(() => isOpen() && studio.button("grid-look")?.click(), 250);
    }

    return { attach, isOpen, changed };
  })(studio.compare),
);
