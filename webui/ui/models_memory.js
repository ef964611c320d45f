// What is in memory: how full, by what, since when; and what came and went.
Object.assign(
  studio.models,
  (({ escape, bytes, Shelf, chosen }) => {
    const MARKUP = `
      <div class="memory-bars"></div>
      <details class="memory-held" open hidden><summary></summary><ul class="memory-parts" aria-label="In memory"></ul></details>
      <p class="memory-empty" hidden><b>Nothing is in memory.</b> A model is loaded when a picture needs it, or when you press Load beside it.</p>
      <div class="memory-all"><button data-do="release" data-key="">Release all</button></div>
      <details class="memory-events"><summary>Loads and evictions</summary><ol></ol></details>`;
    const LOOK_AGAIN = 2000; // milliseconds
    const SIGNS = { loaded: "+", "moved to the device": "↑", "moved to RAM": "↓", evicted: "−", released: "−", refused: "!" };

    const seconds = (value) => (value < 9.95 ? `${value.toFixed(1)} s` : value < 99.5 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`);
    function ago(at) {
      const past = Math.max(0, Date.now() / 1000 - at);
      if (past < 5) return "just now";
      if (past < 60) return `${Math.round(past)} s ago`;
      if (past < 3600) return `${Math.round(past / 60)} min ago`;
      return past < 86400 ? `${Math.round(past / 3600)} h ago` : `${Math.round(past / 86400)} days ago`;
    }

    const apps = {};

    class Memory {
      now = null;

      constructor(root, tell) {
        Object.assign(this, { root, tell });
        root.innerHTML = MARKUP;
        root.querySelector(".memory-held").open = !matchMedia("(max-width: 860px)").matches; // there, the files come first
        root.addEventListener("click", (event) => this.click(event.target.closest("[data-do]")));
        setInterval(() => this.look(), LOOK_AGAIN);
      }

      // While it is seen: what is there changes by itself, and "5 s ago" grows old.
      look() {
        if (!this.now || document.hidden || !this.root.checkVisibility()) return;
        this.draw();
        this.tell.look({});
      }

      receive(message) {
        this.now = message;
        this.draw();
      }

      draw() {
        const { now } = this;
        this.put(".memory-bars", this.bar(now.device, now.device_used, now.device_budget, "device") + this.bar("RAM", now.ram_used, now.ram_budget, "RAM"));
        this.put(".memory-parts", now.parts.map((part) => this.part(part)).join(""));
        this.put(".memory-events ol", [...now.events].reverse().map((event) => this.event(event)).join(""));
        const count = now.parts.length;
        this.put(".memory-held summary", count === 1 ? "1 part" : `${count} parts`);
        this.root.querySelector(".memory-held").hidden = count === 0;
        this.root.querySelector(".memory-empty").hidden = count > 0;
        this.root.querySelector(".memory-all").hidden = !now.manage || !now.parts.some((part) => !part.in_use);
        this.root.querySelector(".memory-events").hidden = now.events.length === 0;
        apps.shelf?.hold(new Set(now.parts.flatMap((part) => part.models)));
      }

      // Only what is new is put into the page, and not under a press, which would be lost; the focus stays with what a
      // person had under the keyboard.
      put(selector, html) {
        const place = this.root.querySelector(selector);
        if (place.drawn === html || place.matches(":active")) return;
        const focused = place.querySelector(":focus");
        place.innerHTML = place.drawn = html;
        if (focused) place.querySelector(`[data-do="${focused.dataset.do}"][data-key="${CSS.escape(focused.dataset.key)}"]`)?.focus();
      }

      bar(name, used, budget, tier) {
        if (!budget) return "";
        const share = (part) => `${((100 * part.bytes) / Math.max(budget, used)).toFixed(2)}%`;
        const parts = this.now.parts.filter((part) => part.tier === tier);
        const pieces = parts.map((part, i) => `<i class="${part.in_use ? "busy" : ""}" style="width:${share(part)};--n:${i % 3}" title="${escape(part.label)}: ${bytes(part.bytes)}"></i>`);
        const percent = Math.round((100 * used) / budget);
        return `<div class="memory-bar"><p><b>${escape(name)}</b><span>${bytes(used)} of ${bytes(budget)}</span></p>
          <div role="meter" aria-label="${escape(name)}" aria-valuemin="0" aria-valuemax="100" aria-valuenow="${percent}" aria-valuetext="${bytes(used)} of ${bytes(budget)}">${pieces.join("")}</div></div>`;
      }

      part(part) {
        const key = escape(part.key);
        const button = (does, words, more = "") => `<button data-do="${does}" data-key="${key}" aria-label="${words} ${escape(part.label)}"${more}>${words}</button>`;
        const acts = this.now.manage
          ? `<div class="acts">${button("pin", part.pinned ? "Unpin" : "Pin", ` aria-pressed="${part.pinned}"`)}${part.in_use ? "" : button("release", "Release")}</div>`
          : "";
        const took = part.load_seconds ? `<span>loaded in ${seconds(part.load_seconds)}</span>` : "";
        return `<li><div class="about"><h3>${escape(part.label)}</h3>
          <p class="facts"><b class="${part.tier === "device" ? "on" : ""}">${part.tier === "device" ? "On the device" : "In RAM"}</b><span>${bytes(part.bytes)}</span>${part.in_use ? '<span class="busy">computing</span>' : `<span>used ${ago(part.last_used)}</span>`}${took}</p>
          <p class="why">${escape(part.why)}</p></div>${acts}</li>`;
      }

      event(event) {
        const took = event.seconds ? `<span>${seconds(event.seconds)}</span>` : "";
        const size = event.bytes ? `<span>${bytes(event.bytes)}</span>` : "";
        const time = new Date(1000 * event.at);
        return `<li class="${event.what === "refused" ? "wrong" : ""}"><i aria-hidden="true">${SIGNS[event.what] ?? "·"}</i><div><p><b>${escape(event.label)}</b> ${escape(event.what)}</p>
          <p class="facts"><time datetime="${time.toISOString()}">${time.toLocaleTimeString()}</time>${size}${took}</p>${event.why ? `<p class="why">${escape(event.why)}</p>` : ""}</div></li>`;
      }

      click(button) {
        if (!button) return;
        const { key } = button.dataset;
        button.disabled = true;
        if (button.dataset.do === "release") this.tell.release({ key });
        if (button.dataset.do === "pin") this.tell.pin({ key, pinned: button.getAttribute("aria-pressed") !== "true" });
        setTimeout(() => (button.disabled = false), 3000); // should the answer be the same as before
      }
    }

    // From Gradio, once a component is there: see gr.HTML's js_on_load.
    function attach(name, App, element, props, watch, tell) {
      const app = (apps[name] = new App(element.querySelector(".models-app"), tell));
      const read = () => props.value && app.receive(JSON.parse(props.value));
      watch("value", read);
      read();
    }

    // The form has chosen something of a kind.
    function mark(kind, name) {
      chosen[kind] = name;
      apps.shelf?.mark();
    }

    // The form has taken a file, or refused it.
    const used = () => apps.shelf.used();
    const refreshed = () => apps.shelf.refreshed();

    return { used, refreshed, attachShelf: (...given) => attach("shelf", Shelf, ...given), attachMemory: (...given) => attach("memory", Memory, ...given), mark };
  })(studio.models),
);
