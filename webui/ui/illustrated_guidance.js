// With and against the prompt: the guesses of one call, and what another scale makes of them, without the net.
Object.assign(
  studio.illustrated,
  (({ Panel, Curve, make, figure, percent, heat, unpacked, paint, captioned }) => {
    const LARGEST = 20; // CFG scale on the slider

    // What of a colour of -1..1 is seen, 0 to 255, as webui.illustrated.colours.pixels has it.
    const level = (value) => Math.round(Math.min(Math.max((value + 1) * 127.5, 0), 255));

    class Guidance extends Panel {
      wide = true;

      body({ guidance, about }) {
        if (!guidance) return [make("p", { class: "missing", text: `Nothing was guided: at CFG scale ${figure(about.scale)} the net is asked with the prompt alone, so there is nothing to compare.` })];
        this.cond = unpacked(Float32Array, guidance.cond); // of shown calls x places x 3
        this.uncond = unpacked(Float32Array, guidance.uncond);
        this.pull = unpacked(Float32Array, guidance.pull); // of shown calls x places
        this.places = guidance.grid[0] * guidance.grid[1];
        this.chosen = about.scale;
        const canvas = (label) => make("canvas", { class: "big pixels", role: "img", "aria-label": label });
        this.pictures = ["The guess without the prompt", "The guess with the prompt", "The guided guess"].map(canvas);
        this.map = canvas("Where the prompt changes the guess");
        this.pictures[2].classList.add("guided");
        const [u, c, g] = this.pictures;
        const names = [[u, "Negative", "s = 0"], [c, "Prompt", "s = 1"], [g, "Guided", ""], [this.map, "The pull", "brighter: more"]];
        const figures = names.map((each) => captioned(...each));
        this.note = figures[2].querySelector("figcaption").appendChild(make("span"));
        return [make("div", { class: "four" }, ...figures), this.slider(), this.curves(guidance)];
      }

      slider() {
        const most = Math.max(LARGEST, this.chosen);
        this.input = make("input", { type: "range", min: 0, max: most, step: 0.5, value: this.chosen, "aria-label": "CFG scale, of this call alone",
          oninput: () => this.choose(Number(this.input.value)) });
        this.output = make("output");
        this.back = make("button", { type: "button", text: "As it was made", onclick: () => this.choose(this.record.about.scale) });
        return make("div", { class: "slider" }, make("label", {}, make("span", { text: "CFG scale" }), this.input), this.output, this.back);
      }

      curves({ size, scales, clipped }) {
        const lines = [{ label: "Difference", values: size }];
        this.sizes = new Curve({ about: "How much the prompt changes what the net says", x: this.calls(), lines, choose: (i) => this.board.scrub(i) });
        const x = { title: "CFG scale", values: scales, labels: scales.map((scale) => figure(scale)) };
        this.sharpening = new Curve({ about: "Share of the colours beyond black or white, over the scale", x, lines: [{ label: "Beyond", values: clipped[0] }], range: [0, 1], choose: (i) => this.choose(scales[i]) });
        return make("div", { class: "two" }, make("div", {}, make("h4", { text: "How much the prompt changes what the net says" }), this.sizes.element),
          make("div", {}, make("h4", { text: "Oversharpening: colours beyond black or white" }), this.sharpening.element));
      }

      choose(scale) {
        this.chosen = scale;
        this.input.value = scale;
        this.board.redraw(this);
      }

      show(call) {
        const { guidance, about } = this.record;
        if (!guidance) return;
        const i = this.board.nearest(call);
        const s = this.chosen;
        const from = i * this.places * 3;
        const blend = (scale) => (place) => {
          const at = from + 3 * place;
          return [0, 1, 2].map((channel) => level(this.uncond[at + channel] + scale * (this.cond[at + channel] - this.uncond[at + channel])));
        };
        [0, 1, s].forEach((scale, n) => paint(this.pictures[n], guidance.grid, blend(scale)));
        const pull = this.pull.subarray(i * this.places, (i + 1) * this.places);
        const most = pull.reduce((high, value) => Math.max(high, value), 1e-12);
        paint(this.map, guidance.grid, (place) => heat(pull[place] / most));
        const made = s === about.scale;
        this.output.textContent = figure(s);
        this.note.textContent = made ? `s = ${figure(s)}, as it was made` : `s = ${figure(s)}, this call alone`;
        this.back.disabled = made;
        this.sizes.mark(call);
        this.sharpening.lines[0].values = guidance.clipped[i];
        this.sharpening.redraw();
        const { scales } = guidance;
        const same = scales.indexOf(s);
        this.sharpening.mark(Math.max(same, 0), same < 0 ? Math.min(Math.max(s, scales[0]), scales.at(-1)) : undefined);
      }

      facts(call) {
        const { guidance, about } = this.record;
        if (!guidance) return { scale: figure(about.scale), call: call + 1, size: "nothing", clipped: "none", chosen: "1" };
        return { scale: figure(about.scale), call: call + 1, size: figure(guidance.size[call]), chosen: figure(this.chosen), clipped: percent(guidance.beyond[this.board.nearest(call)]) };
      }
    }

    return { Guidance };
  })(studio.illustrated),
);
