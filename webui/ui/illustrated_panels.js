// A panel: its title, what it says at the depth that is chosen, its checks and its sources. And the first of them: the
// film, why not to jump to the end, coarse to fine, signal and noise.
//
// A panel has `body(record)`, which makes what it shows once, `show(call)`, which draws a call, and `facts(call)`, the
// numbers of its texts.
Object.assign(
  studio.illustrated,
  (({ make, written, figure, percent, captioned, Curve, Waterfall }) => {
    const MOST_BADGES = 3; // more of them are behind one line

    class Panel {
      wide = false;

      constructor(name, board, record) {
        const said = studio.illustrated.texts.panels[name];
        Object.assign(this, { name, board, record, said });
        this.depths = ["plain", "numbers", "formula"].map((depth) => make("p", { class: `depth ${depth}` }, ...written(said[depth])));
        this.element = make("section", { class: `panel ${name}`, "aria-labelledby": `illustrated-of-${name}` },
          make("h3", { id: `illustrated-of-${name}`, text: said.title }), ...this.depths, ...this.body(record),
          make("footer", {}, ...this.badges(record.checks[name] ?? []), ...said.sources.map((text) => make("p", { class: "source", text }))));
      }

      facts() { return {}; }
      show() {}

      at(call) {
        this.show(call);
        const facts = this.facts(call);
        this.depths.slice(1).forEach((part, i) => part.replaceChildren(...written(this.said[["numbers", "formula"][i]], facts)));
      }

      badges(checks) {
        if (!checks.length) return [];
        const list = make("ul", { class: "checks", "aria-label": "Checks" }, ...checks.map(({ name, error, tolerance, held }) =>
          make("li", { class: held ? "held" : "broken" }, make("b", { text: held ? "✓ holds" : "✗ broken" }),
            make("span", { text: name }), make("small", { text: `error ${figure(error, 2)} of at most ${figure(tolerance, 2)}` }))));
        if (checks.length <= MOST_BADGES) return [list];
        const broken = checks.filter(({ held }) => !held).length;
        const said = broken ? `${broken} of ${checks.length} checks are broken` : `✓ All ${checks.length} checks hold`;
        return [make("details", { open: broken > 0 }, make("summary", { class: "all-checks", text: said }), list)];
      }

      // The calls as an axis.
      calls() {
        const values = this.record.timesteps.map((_, i) => i);
        return { title: "Call of the net", values, labels: values.map((i) => `${i + 1}`) };
      }
    }

    const OUTPUTS = { epsilon: "the noise ε̂", v_prediction: "v̂, which is a ε − σ x₀", sample: "the picture x̂₀ itself", flow_prediction: "v̂, which is ε − x₀" };
    const GUESSES = { epsilon: "(x − σ ε̂) / a", v_prediction: "a x − σ v̂", sample: "what the net says", flow_prediction: "x − σ v̂" };

    class Film extends Panel {
      wide = true;

      body({ film, picture, calls, shown, width, height }) {
        const image = (alt) => make("img", { alt, class: "big" });
        this.given = image("What the net was given");
        this.guess = image("What the net believed the picture to be");
        const end = make("img", { alt: "The finished picture", class: "big", src: picture });
        this.thumbs = shown.map((call, i) => make("button", { type: "button", "aria-label": `Call ${call + 1} of ${calls}`, onclick: () => this.board.scrub(call) },
          make("img", { alt: "", src: film.given[i], loading: "lazy" }), make("img", { alt: "", src: film.guess[i], loading: "lazy" })));
        this.strip = make("div", { class: "strip", role: "group", "aria-label": "All calls" }, ...this.thumbs);
        const three = make("div", { class: "three" }, captioned(this.given, "Given", "latents in colour"),
          captioned(this.guess, "Believed", film.decoded ? "the guess, through the VAE" : "the guess, latents in colour"),
          captioned(end, "Finished", `${width} × ${height}`));
        this.now = make("p", { class: "now" });
        return [three, this.now, this.strip];
      }

      show(call) {
        const i = this.board.nearest(call);
        this.given.src = this.record.film.given[i];
        this.guess.src = this.record.film.guess[i];
        const { step, timestep, signal_share, noise_share } = this.facts(call);
        this.now.textContent = `Step ${step}, timestep ${timestep}: ${signal_share} signal, ${noise_share} noise`;
        this.thumbs.forEach((thumb, n) => thumb.setAttribute("aria-current", n === i));
        const thumb = this.thumbs[i];
        const { strip } = this;
        if (thumb.offsetLeft < strip.scrollLeft || thumb.offsetLeft + thumb.offsetWidth > strip.scrollLeft + strip.clientWidth)
          strip.scrollLeft = thumb.offsetLeft - strip.clientWidth / 2;
      }

      facts(call) {
        const { calls, steps, timesteps, signal, noise, prediction } = this.record;
        const [a, s] = [signal[call], noise[call]];
        const share = (a * a) / (a * a + s * s);
        return { call: call + 1, calls, step: steps[call] + 1, timestep: figure(timesteps[call]), signal: figure(a), noise: figure(s),
          signal_share: percent(share), noise_share: percent(1 - share), output: OUTPUTS[prediction], x0: GUESSES[prediction] };
      }
    }

    class Path extends Panel {
      body({ path }) {
        const lines = [{ label: "Change to the next guess", values: path.change }, { label: "Distance to the last guess", values: path.distance }];
        this.curve = new Curve({ about: "How much the guess changes, and how far it is from the last one", x: this.calls(), lines, choose: (i) => this.board.scrub(i) });
        return [make("p", { class: "now", text: this.settled() }), this.curve.element];
      }

      show(call) { this.curve.mark(call); }

      settled() {
        const { settled, threshold } = this.record.path;
        return settled ? `Settled from call ${settled + 1} on: within ${percent(threshold)} of the last guess` : "Settled from the first call on";
      }

      facts(call) {
        const { change, distance } = this.record.path;
        const last = call === change.length;
        return { call: call + 1, distance: figure(distance[call]), change_number: last ? "none" : figure(change[call]), distance_number: figure(distance[call]),
          change: last ? "there is no guess after it" : `the next one differs from it by ${figure(change[call])}` };
      }
    }

    class Bands extends Panel {
      wide = true;

      body({ bands }) {
        const rows = bands.values.map((values, i) => ({ label: bands.labels[i], values }));
        this.map = new Waterfall({ about: "How alike each band of the guess is to that of the last one", x: this.calls(), rows, choose: (i) => this.board.scrub(i) });
        return [this.map.element];
      }

      show(call) { this.map.mark(call); }

      facts(call) {
        const { values } = this.record.bands;
        return { call: call + 1, coarse: figure(values[0][call], 2), fine: figure(values.at(-1)[call], 2) };
      }
    }

    class Noise extends Panel {
      body({ signal, noise }) {
        const lines = [{ label: "Signal a", values: signal }, { label: "Noise σ", values: noise }];
        this.curve = new Curve({ about: "Signal and noise of what the net is given", x: this.calls(), lines, choose: (i) => this.board.scrub(i) });
        this.formula = make("p", { class: "equation", "aria-live": "off" });
        return [this.curve.element, this.formula];
      }

      show(call) {
        this.curve.mark(call);
        const { signal, noise } = this.record;
        this.formula.textContent = `x = ${figure(signal[call])} x₀ + ${figure(noise[call])} ε`;
      }

      facts(call) {
        const [a, s] = [this.record.signal[call], this.record.noise[call]];
        return { call: call + 1, signal: figure(a), noise: figure(s), snr: figure((a * a) / (s * s)) };
      }
    }

    return { Panel, Film, Path, Bands, Noise };
  })(studio.illustrated),
);
