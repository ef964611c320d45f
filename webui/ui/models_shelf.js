// What is on the disk: a list that is searched, filtered and sorted here, so that a thousand files answer at once.
studio.models = (() => {
  const escape = (text) => String(text ?? "").replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const bytes = (count) => {
    if (!count) return "0 MiB";
    if (count < 1024 ** 2) return `${Math.max(1, Math.round(count / 1024))} KiB`;
    const mebi = count / 1024 ** 2;
    return mebi < 1024 ? `${mebi.toFixed(mebi < 10 ? 1 : 0)} MiB` : `${(mebi / 1024).toFixed(1)} GiB`;
  };
  const { compare: alphabetically } = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const byName = (a, b) => alphabetically(a.name, b.name);
  const SORTS = {
    kind: ["By kind and name", (a, b) => a.order - b.order || byName(a, b)],
    name: ["By name", byName],
    newest: ["Newest first", (a, b) => b.changed - a.changed],
    largest: ["Largest first", (a, b) => b.bytes - a.bytes],
    used: ["Lately used first", (a, b) => (b.used ?? 0) - (a.used ?? 0)],
  };

  // What a button does, and to which file: the latter is only heard.
  function say(button, words, name) {
    if (button.textContent === words) return;
    button.textContent = words;
    button.setAttribute("aria-label", `${words} ${name}`);
  }
  const PATIENCE = 90_000; // milliseconds for a model to be loaded

  const noting = (file) => `<button data-do="note" aria-expanded="false" aria-label="Note on ${escape(file.name)}">Note</button>
    <button data-do="star" aria-pressed="${file.star}" aria-label="Favourite: ${escape(file.name)}">${file.star ? "★" : "☆"}</button>`;

  const MARKUP = `
    <div class="shelf-tools" role="search">
      <input type="search" data-part="search" placeholder="Search names, trigger words and notes" aria-label="Search the models">
      <select data-part="family" aria-label="Family"></select>
      <select data-part="sort" aria-label="Order">${Object.entries(SORTS).map(([name, [label]]) => `<option value="${name}">${label}</option>`).join("")}</select>
      <button data-do="starred" aria-pressed="false" title="Show favourites alone">★ only</button>
      <button data-do="refresh">Refresh</button></div>
    <div class="shelf-kinds" role="group" aria-label="Kind"></div>
    <p class="shelf-count" role="status"></p>
    <ul class="shelf-list" aria-label="Models"></ul>
    <div class="shelf-empty" hidden></div>`;

  class Shelf {
    files = [];
    rows = new Map(); // key -> its <li>
    markup = new WeakMap(); // <li> -> what it was made of
    kind = "";
    starred = false;
    held = new Set(); // names of the models in memory
    wanted = []; // keys of files for the form, one after the other: each reads what the one before has written
    loading = new Map(); // name -> until when its loading is waited for

    // tell: what the server is asked, by name.
    constructor(root, tell) {
      Object.assign(this, { root, tell });
      root.innerHTML = MARKUP;
      this.list = root.querySelector(".shelf-list");
      root.addEventListener("click", (event) => this.click(event.target.closest("[data-do]")));
      root.addEventListener("submit", (event) => this.noted(event));
      root.addEventListener("keydown", (event) => this.key(event));
      for (const name of ["search", "family", "sort"]) this.part(name).addEventListener("input", () => this.arrange());
      addEventListener("focus", () => this.back());
    }

    // Whoever was away may have brought files; but a note that is being written stays.
    back() {
      if (this.root.checkVisibility() && !this.list.querySelector("form")) this.tell.refresh({});
    }

    part(name) { return this.root.querySelector(`[data-part=${name}]`); }
    file(key) { return this.files.find((file) => file.key === key); }

    // What the server says: all there is.
    receive(message) {
      Object.assign(this, { files: message.files, families: message.families, kinds: message.kinds });
      this.hint = message.hint;
      const order = Object.keys(this.kinds);
      for (const file of this.files) file.order = order.indexOf(file.kind);
      this.draw();
      this.options();
      this.arrange();
      this.mark();
      this.hold(this.held);
    }

    // Only what is new: a row that is being pressed, or holds a note that is being written, stays.
    draw() {
      const before = this.rows;
      this.rows = new Map(this.files.map((file) => [file.key, this.drawn(file, before.get(file.key))]));
      for (const [key, row] of before) if (this.rows.get(key) !== row) row.remove();
    }

    // A file's <li>; the one there is, if it would be alike.
    drawn(file, row) {
      const markup = this.row(file);
      if (row && this.markup.get(row) === markup) return row;
      const fresh = new DOMParser().parseFromString(markup, "text/html").body.firstChild;
      this.markup.set(fresh, markup);
      return fresh;
    }

    // Also where nothing is new, so that nothing is received.
    refreshed() { this.root.querySelector('[data-do="refresh"]').disabled = false; }

    // What is new of one file.
    replace(file) {
      const at = this.files.findIndex((other) => other.key === file.key);
      if (at < 0) return;
      this.files[at] = { ...this.files[at], ...file };
      const focused = this.rows.get(file.key).querySelector(":focus")?.dataset.do;
      const fresh = this.drawn(this.files[at]);
      this.rows.get(file.key).replaceWith(fresh);
      this.rows.set(file.key, fresh);
      if (focused) fresh.querySelector(`[data-do=${focused}]`)?.focus();
      this.mark();
      this.hold(this.held);
      this.count();
    }

    row(file) {
      const { name } = file;
      const said = [file.form, this.families[file.family], file.prediction, file.precision, bytes(file.bytes)].filter(Boolean).map(escape);
      const facts = said.map((fact) => `<span>${fact}</span>`).join("");
      const hash = file.hash ? `<code title="The first digits of its SHA-256">${escape(file.hash)}</code>` : "";
      const words = file.words.length ? `<p class="words"><b>Trigger words</b> ${file.words.map(escape).join(", ")}</p>` : "";
      const picture = file.picture ? `<img src="${escape(file.picture)}" alt="" loading="lazy">` : `<span aria-hidden="true">${escape(this.kinds[file.kind].sign)}</span>`;
      const use = file.use ? `<button data-do="use" class="take" aria-label="Use ${escape(name)}">Use</button>` : "";
      const load = file.use && file.kind === "checkpoint" && file.manage ? `<button data-do="load" aria-label="Load ${escape(name)}">Load</button>` : "";
      return `<li data-key="${escape(file.key)}"${file.problem ? ' class="faulty"' : ""}>
        <div class="thumb">${picture}</div>
        <div class="about"><h3>${escape(name)}</h3><p class="facts"><b>${escape(this.kinds[file.kind].title)}</b>${facts}${hash}</p>
          ${file.problem ? `<p class="wrong">${escape(file.problem)}</p>` : ""}${words}
          ${file.assumed ? `<p class="assumed">${escape(file.assumed)}</p>` : ""}${file.note ? `<p class="own">${escape(file.note)}</p>` : ""}</div>
        <div class="acts">${use}${load}
          ${file.manage ? noting(file) : ""}</div></li>`;
    }

    // The filters offer what there is.
    options() {
      const count = (test) => this.files.filter(test).length;
      const families = Object.keys(this.families).filter((family) => count((file) => file.family === family));
      const chosen = this.part("family").value;
      this.part("family").innerHTML = `<option value="">All families</option>` + families.map((f) => `<option value="${escape(f)}">${escape(this.families[f])}</option>`).join("");
      this.part("family").value = families.includes(chosen) ? chosen : "";
      this.part("family").hidden = families.length < 2;
      const kinds = Object.keys(this.kinds).filter((kind) => count((file) => file.kind === kind));
      if (!kinds.includes(this.kind)) this.kind = "";
      const button = (kind, label, n) => `<button data-do="kind" data-kind="${escape(kind)}" aria-pressed="${kind === this.kind}">${escape(label)} <i>${n}</i></button>`;
      const each = kinds.map((kind) => button(kind, this.kinds[kind].plural, count((file) => file.kind === kind)));
      this.root.querySelector(".shelf-kinds").innerHTML = kinds.length > 1 ? [button("", "All", this.files.length), ...each].join("") : "";
    }

    // Which are seen, and in which order; what is in its place stays there.
    arrange() {
      const order = [...this.files].sort(SORTS[this.part("sort").value][1]).sort((a, b) => Boolean(a.problem) - Boolean(b.problem) || b.star - a.star);
      let next = this.list.firstChild;
      for (const { key } of order) {
        const row = this.rows.get(key);
        if (row === next) next = next.nextSibling;
        else this.list.insertBefore(row, next);
      }
      this.count();
    }

    count() {
      const words = this.part("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      const family = this.part("family").value;
      let seen = 0;
      for (const file of this.files) {
        const text = [file.name, this.kinds[file.kind].title, this.families[file.family], file.note, file.hash, ...file.words].join(" ").toLowerCase();
        const fits = (!this.kind || file.kind === this.kind) && (!family || file.family === family) && (!this.starred || file.star) && words.every((word) => text.includes(word));
        this.rows.get(file.key).hidden = !fits;
        seen += fits;
      }
      const all = this.files.length;
      const told = seen === all ? `${all} ${all === 1 ? "file" : "files"}` : `${seen} of ${all} files`;
      this.root.querySelector(".shelf-count").textContent = all ? told : "";
      const empty = this.root.querySelector(".shelf-empty");
      empty.hidden = seen > 0;
      empty.innerHTML = all ? "<p>Nothing here is like that.</p><button data-do=\"all\">Show everything</button>" : `<p><b>No models yet.</b></p><p>${escape(this.hint)}</p>`;
    }

    // What is in memory: of a model that is, nothing is to be loaded.
    hold(held) {
      this.held = held;
      for (const [name, until] of this.loading) if (held.has(name) || Date.now() > until) this.loading.delete(name);
      for (const file of this.files) {
        const button = file.kind === "checkpoint" && this.rows.get(file.key).querySelector('[data-do="load"]');
        if (!button) continue;
        const words = held.has(file.name) ? "Loaded" : this.loading.has(file.name) ? "Loading" : "Load";
        say(button, words, file.name);
        button.disabled = words !== "Load";
      }
    }

    // What the form has chosen.
    mark() {
      for (const file of this.files) {
        const chosen = studio.models.chosen[file.kind] === file.name;
        const row = this.rows.get(file.key);
        row.classList.toggle("chosen", chosen);
        const use = row.querySelector('[data-do="use"]');
        const words = file.kind === "lora" || file.kind === "embedding" ? "Insert" : chosen ? "In use" : "Use";
        if (use) say(use, words, file.name);
      }
    }

    click(button) {
      if (!button) return;
      const key = button.closest("li")?.dataset.key;
      const file = this.file(key);
      const does = {
        kind: () => { this.kind = button.dataset.kind; this.pressed(); },
        starred: () => { this.starred = !this.starred; this.pressed(); },
        all: () => { Object.assign(this, { kind: "", starred: false }); this.part("search").value = this.part("family").value = ""; this.pressed(); this.part("search").focus(); },
        refresh: () => { button.disabled = true; this.tell.refresh({}); },
        use: () => this.wanted.push(key) === 1 && this.tell.use({ key }),
        load: () => { this.loading.set(file.name, Date.now() + PATIENCE); this.hold(this.held); this.tell.bring({ key }); },
        star: () => { this.replace({ key, star: !file.star }); this.tell.note({ key, star: !file.star }); },
        note: () => this.note(key, button),
      };
      does[button.dataset.do]?.();
    }

    used() {
      this.wanted.shift();
      if (this.wanted.length) this.tell.use({ key: this.wanted[0] });
    }

    pressed() {
      for (const button of this.root.querySelectorAll('[data-do="kind"]')) button.setAttribute("aria-pressed", button.dataset.kind === this.kind);
      this.root.querySelector('[data-do="starred"]').setAttribute("aria-pressed", this.starred);
      this.count();
    }

    // The note of a file is written in its row.
    note(key, button) {
      const row = this.rows.get(key);
      const open = row.querySelector("form");
      button.setAttribute("aria-expanded", !open);
      if (open) return open.remove();
      const file = this.file(key);
      row.querySelector(".about").insertAdjacentHTML("beforeend", `<form><input value="${escape(file.note)}" maxlength="1000" aria-label="Note on ${escape(file.name)}" placeholder="A note of your own"><button data-do="keep" class="main">Keep</button></form>`);
      row.querySelector("form input").focus();
    }

    noted(event) {
      event.preventDefault();
      const { key } = event.target.closest("li").dataset;
      const note = event.target.querySelector("input").value.trim();
      this.replace({ key, note });
      this.rows.get(key).querySelector('[data-do="note"]').focus();
      this.tell.note({ key, note });
    }

    key(event) {
      const form = event.target.closest("form");
      if (event.key !== "Escape" || !form) return;
      event.preventDefault();
      const button = form.closest("li").querySelector('[data-do="note"]');
      form.remove();
      button.setAttribute("aria-expanded", "false");
      button.focus();
    }
  }

  return { escape, bytes, Shelf, chosen: {} };
})();
