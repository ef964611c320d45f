// The table of a grid's pictures: its labels and places, how large they are, and what is seen of each cell.
Object.assign(
  studio.compare,
  (({ escape }) => {
    const SMALLEST = { wide: 104, narrow: 72 }; // pixels, of a picture before a person moves the slider
    const LARGEST = 420;
    const NARROW = 560; // pixels, of the room for the grid

    class Table {
      sized = false; // a person has chosen the size

      constructor(board) {
        this.board = board;
        this.scroll = board.root.querySelector(".grid-scroll");
        this.element = this.scroll.querySelector("table");
        this.tip = board.root.querySelector(".grid-tip");
        this.listen();
      }

      listen() {
        const { element } = this;
        const shot = (event) => event.target.closest?.(".shot");
        this.board.part("size").addEventListener("input", (event) => this.resize(Number(event.target.value), true));
        element.addEventListener("keydown", (event) => this.key(event));
        element.addEventListener("pointerover", (event) => matchMedia("(hover: hover)").matches && this.point(shot(event)));
        element.addEventListener("pointerleave", () => this.point(null));
        element.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && this.point(shot(event)));
        element.addEventListener("focusout", () => this.point(null));
        this.scroll.addEventListener("scroll", () => this.point(null), { passive: true });
        new ResizeObserver(() => this.sized || this.fit()).observe(this.scroll);
      }

      shot(key) { return this.element.querySelector(`[data-at="${key}"]`); }
      shots() { return this.element.querySelectorAll(".shot"); }

      // Rows, columns and labels of the page that is open.
      lay() {
        const { plan, page } = this.board;
        const [x, y, z] = plan.axes;
        const across = Math.ceil(Math.sqrt(plan.per_cell));
        const corner = [x.title && `${escape(x.title)} →`, y.title && `${escape(y.title)} ↓`].filter(Boolean).join("<br>");
        const columns = x.labels.map((label) => `<th scope="col"><span title="${escape(label)}">${escape(label)}</span></th>`).join("");
        const rows = y.labels.map((label, j) => {
          const cells = x.labels.map((_, i) => {
            const shots = Array.from({ length: plan.per_cell }, (_, k) => `<div class="shot" data-at="${[i, j, page, k]}"></div>`);
            return `<td><div class="shots">${shots.join("")}</div></td>`;
          });
          return `<tr><th scope="row"><span title="${escape(label)}">${escape(label)}</span></th>${cells.join("")}</tr>`;
        });
        const caption = z.title ? `${z.title}: ${z.labels[page]}` : "Comparison grid";
        this.element.innerHTML = `<caption>${escape(caption)}</caption><thead><tr><td>${corner}</td>${columns}</tr></thead><tbody>${rows.join("")}</tbody>`;
        this.element.style.setProperty("--across", across);
        this.element.style.setProperty("--ratio", `${plan.width} / ${plan.height}`);
        this.element.classList.toggle("bare", !y.title);
        for (const shot of this.shots()) this.draw(shot.dataset.at, shot);
        this.filter();
      }

      // As large as the columns fit, until a person moves the slider.
      fit() {
        const { plan, full } = this.board;
        if (!plan || !this.scroll.clientWidth) return;
        const labels = this.element.querySelector("thead td").offsetWidth;
        const count = plan.axes[0].labels.length;
        const across = Math.ceil(Math.sqrt(plan.per_cell));
        const room = (this.scroll.clientWidth - labels) / count - 10;
        const height = full ? innerHeight - 200 : Math.max(innerHeight - 330, 300);
        const down = Math.ceil(plan.per_cell / across) * Math.min(plan.axes[1].labels.length, 3);
        const tall = ((height / down) * plan.width) / plan.height;
        const least = this.scroll.clientWidth < NARROW ? SMALLEST.narrow : SMALLEST.wide;
        this.resize(Math.min(Math.max(Math.floor(Math.min(room / across - 4, tall)), least), LARGEST));
      }

      resize(size, chosen = false) {
        this.sized ||= chosen;
        this.board.part("size").value = size;
        this.element.style.setProperty("--size", `${size}px`);
      }

      // One picture's place: its picture or preview or why there is none; its number, star and pick.
      draw(key, shot = this.shot(key)) {
        if (!shot) return;
        const { board } = this;
        const { status } = board;
        const cell = board.cells.get(key);
        const index = key.split(",").map(Number);
        const why = board.impossible.get(`${index.slice(0, 3)}`);
        const running = board.isRunning(index);
        const waiting = (status.busy ?? []).some((one) => `${one}` === key);
        shot.className = `shot${cell?.url ? " there" : ""}${running ? " running" : ""}${waiting ? " waiting" : ""}${why ? " impossible" : ""}`;
        const source = running && status.preview ? status.preview : cell?.small;
        const state = JSON.stringify([Boolean(source), Boolean(cell?.url), cell?.error]);
        if (shot.dataset.state !== state) {
          const reached = shot.querySelector(".open")?.getAttribute("tabindex") ?? "-1";
          shot.dataset.state = state;
          shot.innerHTML = this.inside(index, cell, source, why);
          shot.querySelector(".open")?.setAttribute("tabindex", reached);
        }
        const image = shot.querySelector("img");
        if (image && image.getAttribute("src") !== source) image.src = source;
        if (image && !this.element.querySelector('.open[tabindex="0"]')) image.parentElement.setAttribute("tabindex", "0");
        this.mark(shot, key);
        board.numbers.tint(shot, cell);
      }

      inside(index, cell, source, why) {
        const name = escape(this.board.named(index));
        if (why) return `<p title="${escape(why)}">Not possible<span class="sr">: ${escape(why)}</span></p>`;
        if (cell?.error && !source) return `<p class="error">${escape(cell.error)}</p><button data-do="again">Try again</button>`;
        if (!source) return `<span class="sr">${name}: not there yet</span>`;
        return `<button class="open" data-do="open" tabindex="-1" aria-label="${name}"><img alt="" loading="lazy"></button><span class="number"></span>
          ${cell?.url ? `<button class="icon star" data-do="star" tabindex="-1" aria-label="Star" title="Star (S)"></button>
          <button class="icon pick" data-do="pick" tabindex="-1" aria-label="Pick to compare" title="Pick to compare (C)"></button>` : ""}
          ${cell?.error ? `<p class="error">${escape(cell.error)}</p>` : ""}`;
      }

      mark(shot, key) {
        const [star, pick] = [shot.querySelector(".star"), shot.querySelector(".pick")];
        if (!star) return;
        const starred = this.board.isStarred(key.split(","));
        star.textContent = starred ? "★" : "☆";
        star.setAttribute("aria-pressed", starred);
        const at = this.board.picks.indexOf(key);
        pick.textContent = at < 0 ? "⊕" : "AB"[at];
        pick.setAttribute("aria-pressed", at >= 0);
      }

      // Starred cells alone: rows and columns without any are left out, and what is not starred fades.
      filter() {
        const { filtered, page } = this.board;
        const shown = this.board.starred().filter(([, , z]) => z === page);
        const [columns, rows] = [0, 1].map((n) => new Set(shown.map((index) => index[n])));
        const keys = new Set(shown.map(String));
        const hides = (lines, n) => filtered && !lines.has(n);
        for (const row of this.element.rows) {
          const j = row.rowIndex - 1;
          row.hidden = j >= 0 && hides(rows, j);
          [...row.cells].slice(1).forEach((cell, i) => (cell.hidden = hides(columns, i)));
        }
        for (const shot of this.shots()) shot.classList.toggle("out", filtered && !keys.has(shot.dataset.at));
        const none = filtered && !shown.length;
        this.element.hidden = none;
        this.scroll.querySelector(".none").hidden = !none;
      }

      // Beside the pointer or the focus: what the cell is made with, and its time.
      point(shot) {
        const { board, tip } = this;
        const cell = shot && board.cells.get(shot.dataset.at);
        const index = shot?.dataset.at.split(",").map(Number);
        const why = shot && board.impossible.get(`${index.slice(0, 3)}`);
        tip.hidden = !(cell || why);
        if (tip.hidden) return;
        const facts = why ? [["Left out", why]] : board.facts(index, true).slice(0, 14);
        tip.innerHTML = `<dl>${facts.map(([name, value]) => `<div><dt>${escape(name)}</dt><dd>${escape(value)}</dd></div>`).join("")}</dl>`;
        const [box, own] = [shot.getBoundingClientRect(), tip.getBoundingClientRect()];
        const left = box.right + 8 + own.width < innerWidth ? box.right + 8 : Math.max(8, box.left - 8 - own.width);
        tip.style.left = `${left}px`;
        tip.style.top = `${Math.max(8, Math.min(box.top, innerHeight - own.height - 8))}px`;
      }

      // Keyboard: the arrows go to the next picture there is, over cells that are empty or failed.
      key(event) {
        const { board } = this;
        const shot = event.target.closest(".shot");
        if (!shot || event.ctrlKey || event.metaKey || event.altKey) return;
        const index = shot.dataset.at.split(",").map(Number);
        const way = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0] }[event.key];
        if (way) {
          event.preventDefault();
          let next = board.neighbour(index, ...way);
          while (next && !this.opener(next)?.checkVisibility()) next = board.neighbour(next, ...way);
          if (next) this.focus(next, {});
        } else if (event.key === "s") board.star(index);
        else if (event.key === "c") board.pick(index);
      }

      opener(index) { return this.shot(`${index}`)?.querySelector(".open"); }

      focus(index, options = { preventScroll: true }) {
        const open = this.opener(index);
        if (!open) return;
        this.element.querySelector('.open[tabindex="0"]')?.setAttribute("tabindex", "-1");
        open.setAttribute("tabindex", "0");
        open.focus(options);
      }

      reveal(index) { this.shot(`${index}`)?.scrollIntoView({ block: "nearest", inline: "nearest" }); }
    }

    return { Table };
  })(studio.compare),
);
