// The whole explanation: one scrubber over the calls of the net, and the panels that follow it. The same here and in an
// exported page.
Object.assign(
  studio.illustrated,
  (({ make, written, described, Film, Path, Words, Guidance, Bands, Noise, Arrays, Time, Script }) => {
    const PANELS = { film: Film, path: Path, noise: Noise, words: Words, guidance: Guidance, bands: Bands, time: Time, arrays: Arrays, script: Script };
    const DEPTHS = [["plain", "Plain"], ["numbers", "Numbers"], ["formula", "Formula"]];
    const STORED_AS = "studio-depth";
    const PACE = 220; // milliseconds a call

    class Board {
      call = 0;

      // offer: buttons of the head, as elements.
      constructor(root, record, offer = []) {
        Object.assign(this, { root, record });
        root.style.setProperty("--ratio", record.width / record.height);
        this.tip = make("div", { class: "tip", role: "tooltip", hidden: true });
        this.panels = Object.entries(PANELS).map(([name, Kind]) => new Kind(name, this, record));
        for (const panel of this.panels) panel.element.classList.toggle("wide", panel.wide);
        root.replaceChildren(this.head(offer), this.bar(), make("div", { class: "panels" }, ...this.panels.map(({ element }) => element)), this.meanings(), this.tip);
        this.listen();
        this.deepen(remembered());
        this.scrub(0);
      }

      head(offer) {
        const { about } = this.record;
        const facts = about.facts.map(([label, value]) => make("span", {}, make("b", { text: label }), ` ${value}`));
        return make("header", {}, make("p", { class: "prompt", text: about.prompt || "No prompt" }),
          about.negative ? make("p", { class: "negative" }, make("b", { text: "Not" }), ` ${about.negative}`) : null, make("p", { class: "about" }, ...facts),
          ...about.notes.map((text) => make("p", { class: "note", text })), offer.length ? make("p", { class: "offer" }, ...offer) : null);
      }

      bar() {
        const { calls } = this.record;
        this.play = make("button", { type: "button", class: "play", "aria-label": "Play", text: "▶", onclick: () => this.run(!this.playing) });
        this.slider = make("input", { type: "range", min: 0, max: calls - 1, step: 1, value: 0, "aria-label": "Call of the net", oninput: () => {
          this.run(false);
          this.scrub(Number(this.slider.value));
        } });
        this.said = make("output", { class: "said" });
        this.end = make("button", { type: "button", class: "end", text: "Jump to the end", onclick: () => {
          this.run(false);
          this.scrub(calls - 1);
        } });
        this.depths = DEPTHS.map(([depth, text]) => make("button", { type: "button", "data-depth": depth, "aria-pressed": "false", text, onclick: () => {
          remember(depth);
          this.deepen(depth);
        } }));
        return make("div", { class: "scrubber" }, this.play, this.slider, this.said, this.end, make("div", { class: "switch", role: "group", "aria-label": "Depth of the explanation" }, ...this.depths));
      }

      // What the terms mean, for who does not see the tips.
      meanings() {
        const { glossary } = studio.illustrated.texts;
        return make("div", { hidden: true }, ...Object.entries(glossary).map(([term, text]) => make("p", { id: described(term), text })));
      }

      listen() {
        const { root } = this;
        const term = (event) => event.target.closest?.(".term");
        for (const kind of ["pointerover", "focusin", "click"]) root.addEventListener(kind, (event) => term(event) && this.explain(term(event)));
        for (const kind of ["pointerout", "focusout"]) root.addEventListener(kind, (event) => term(event) && this.explain(null));
        root.addEventListener("keydown", (event) => {
          if (event.key !== "Escape" || this.tip.hidden) return;
          event.preventDefault();
          this.explain(null);
        });
      }

      explain(button) {
        const { tip } = this;
        tip.hidden = !button;
        this.explained = button;
        if (!button) return;
        tip.textContent = studio.illustrated.texts.glossary[button.dataset.term];
        const [box, own] = [button.getBoundingClientRect(), tip.getBoundingClientRect()];
        tip.style.setProperty("left", `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`);
        tip.style.setProperty("top", `${box.top - own.height - 6 > 8 ? box.top - own.height - 6 : box.bottom + 6}px`);
      }

      // Every panel shows this call.
      scrub(call) {
        const { calls, steps, timesteps } = this.record;
        this.call = call;
        this.slider.value = call;
        const text = `Call ${call + 1} of ${calls}`;
        this.said.textContent = text;
        this.slider.setAttribute("aria-valuetext", `${text}, step ${steps[call] + 1}, timestep ${Math.round(timesteps[call])}`);
        this.end.disabled = call === calls - 1;
        for (const panel of this.panels) panel.at(call);
        if (!this.explained?.isConnected) this.explain(null); // its text was written anew
      }

      redraw(panel) { panel.at(this.call); }

      // Which of the pictures is of this call, or next to it: of long runs not every call has one.
      nearest(call) {
        const far = this.record.shown.map((shown) => Math.abs(shown - call));
        return far.indexOf(Math.min(...far));
      }

      run(playing) {
        this.playing = playing;
        clearInterval(this.clock);
        this.play.textContent = playing ? "❚❚" : "▶";
        this.play.setAttribute("aria-label", playing ? "Pause" : "Play");
        if (!playing) return;
        if (this.call === this.record.calls - 1) this.scrub(0);
        this.clock = setInterval(() => {
          if (!this.root.isConnected || this.call + 1 >= this.record.calls) return this.run(false);
          this.scrub(this.call + 1);
        }, PACE);
      }

      deepen(depth) {
        this.explain(null);
        this.root.dataset.depth = depth;
        for (const button of this.depths) button.setAttribute("aria-pressed", button.dataset.depth === depth);
      }
    }

    // In this browser; a page from a disk has no place of its own to remember in.
    const lasting = () => location.protocol.startsWith("http");
    const remember = (depth) => { if (lasting()) localStorage.setItem(STORED_AS, depth); };

    function remembered() {
      const stored = lasting() ? localStorage.getItem(STORED_AS) : null;
      return DEPTHS.some(([depth]) => depth === stored) ? stored : "plain";
    }

    return { Board };
  })(studio.illustrated),
);
