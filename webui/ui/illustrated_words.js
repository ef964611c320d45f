// What the words do: where each is looked at, what each place looks at, and which words share their places.
Object.assign(
  studio.illustrated,
  (({ Panel, make, figure, percent, heat, unpacked, paint, captioned, behind, rgb }) => {
    const WHOLE = 65535; // a share of 1, see show_illustrated
    const [MEAN, NOW] = ["mean", "now"];

    class Words extends Panel {
      wide = true;

      body({ words }) {
        if (!words) return [make("p", { class: "missing", text: "The net of this model has no layer that looks at the words and can be watched." })];
        [this.rows, this.columns] = words.grid;
        this.places = this.rows * this.columns;
        this.names = [...words.words, words.rest];
        this.shares = unpacked(Uint16Array, words.shares); // of shown calls x names x places
        this.mean = unpacked(Uint16Array, words.mean); // of names x places
        this.chosen = words.words.length ? words.first : this.names.length - 1;
        this.time = NOW;
        this.place = null; // where the pointer is; null: the whole picture
        return [this.choice(), make("div", { class: "looking" }, this.picture(), this.bars()), this.overlaps(words)];
      }

      choice() {
        this.chips = this.names.map((name, n) => make("button", { type: "button", class: "chip", "aria-pressed": "false", text: name, onclick: () => this.choose({ chosen: n }) }));
        this.times = [[NOW, "At this call"], [MEAN, "Mean of all calls"]].map(([time, text]) =>
          make("button", { type: "button", "data-time": time, "aria-pressed": "false", text, onclick: () => this.choose({ time }) }));
        return make("div", { class: "choice" }, make("div", { class: "chips", role: "group", "aria-label": "Words of the prompt" }, ...this.chips),
          make("div", { class: "switch", role: "group", "aria-label": "When" }, ...this.times));
      }

      picture() {
        this.under = make("img", { alt: "", class: "big" });
        this.map = make("canvas", { class: "over", role: "img" });
        this.spot = make("i", { class: "spot", hidden: true });
        this.field = make("div", { class: "field", tabindex: 0, role: "group", "aria-label": "Place of the picture: the arrow keys move it, Esc lets it go" }, this.under, this.map, this.spot);
        this.field.addEventListener("pointermove", (event) => this.point(this.under_pointer(event)));
        this.field.addEventListener("pointerdown", (event) => this.point(this.under_pointer(event)));
        this.field.addEventListener("pointerleave", () => this.point(null));
        this.field.addEventListener("keydown", (event) => this.key(event));
        this.low = make("span");
        this.high = make("span");
        return make("div", {}, captioned(this.field, "Brighter: looked at more", ""), make("p", { class: "scale" }, this.low, make("i"), this.high));
      }

      bars() {
        this.where = make("p", { class: "where" });
        this.lines = this.names.map((name) => {
          const bar = make("i");
          const value = make("span", { class: "value" });
          return { bar, value, row: make("li", {}, make("span", { class: "name", text: name }), make("span", { class: "bar" }, bar), value) };
        });
        return make("div", { class: "shares" }, this.where, make("ul", {}, ...this.lines.map(({ row }) => row)));
      }

      overlaps({ words, overlap }) {
        if (words.length < 2) return null;
        const cell = (value) => {
          const part = make("td", { text: value.toFixed(2) });
          part.style.setProperty("background", rgb(heat(value)));
          part.style.setProperty("color", value > 0.6 ? "#000" : "#fff");
          return part;
        };
        const compared = words.slice(0, overlap.length);
        const matrix = make("table", { class: "matrix" }, make("caption", { text: "Overlap of the places that two words are looked at: 1 is the same, 0 is apart" }),
          make("thead", {}, make("tr", {}, make("td"), ...compared.map((word) => make("th", { scope: "col", text: word })))),
          make("tbody", {}, ...compared.map((word, i) => make("tr", {}, make("th", { scope: "row", text: word }), ...overlap[i].map(cell)))));
        const details = behind(matrix);
        details.querySelector("summary").textContent = "Which words are looked at in the same places";
        return details;
      }

      choose(what) {
        Object.assign(this, what);
        this.board.redraw(this);
      }

      under_pointer({ clientX, clientY }) {
        const box = this.field.getBoundingClientRect();
        const along = (at, from, length, count) => Math.min(count - 1, Math.max(0, Math.floor(((at - from) / length) * count)));
        return along(clientY, box.top, box.height, this.rows) * this.columns + along(clientX, box.left, box.width, this.columns);
      }

      point(place) {
        if (place === this.place) return;
        this.place = place;
        this.bar();
      }

      key(event) {
        const way = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (event.key === "Escape" && this.place !== null) {
          event.preventDefault();
          this.point(null);
        }
        if (!way) return;
        event.preventDefault();
        const from = this.place ?? Math.floor(this.rows / 2) * this.columns + Math.floor(this.columns / 2);
        const kept = (at, count) => Math.min(count - 1, Math.max(0, at));
        this.point(kept(Math.floor(from / this.columns) + way[0], this.rows) * this.columns + kept((from % this.columns) + way[1], this.columns));
      }

      // Shares that name n gets, of each place.
      of(n) {
        const from = this.time === MEAN ? n * this.places : (this.board.nearest(this.call) * this.names.length + n) * this.places;
        return (this.time === MEAN ? this.mean : this.shares).subarray(from, from + this.places);
      }

      show(call) {
        if (!this.record.words) return;
        this.call = call;
        this.under.src = this.record.film.guess[this.board.nearest(call)];
        this.chips.forEach((chip, n) => chip.setAttribute("aria-pressed", n === this.chosen));
        this.times.forEach((button) => button.setAttribute("aria-pressed", button.dataset.time === this.time));
        const map = this.of(this.chosen);
        const [least, most] = [Math.min(...map), Math.max(...map)];
        paint(this.map, [this.rows, this.columns], (i) => {
          const share = most > least ? (map[i] - least) / (most - least) : 0.5;
          return [...heat(share), 60 + 150 * share];
        });
        this.map.setAttribute("aria-label", `Where the net looks for ${this.names[this.chosen]}`);
        [this.low.textContent, this.high.textContent] = [least, most].map((value) => percent(value / WHOLE));
        this.bar();
      }

      bar() {
        const at = (n) => {
          const map = this.of(n);
          return (this.place === null ? map.reduce((sum, value) => sum + value, 0) / this.places : map[this.place]) / WHOLE;
        };
        const shares = this.names.map((_, n) => at(n));
        const most = Math.max(...shares);
        this.lines.forEach(({ bar, value, row }, n) => {
          bar.style.setProperty("width", `${(100 * shares[n]) / most}%`);
          value.textContent = percent(shares[n]);
          row.classList.toggle("chosen", n === this.chosen);
        });
        const [row, column] = this.place === null ? [] : [Math.floor(this.place / this.columns), this.place % this.columns];
        this.where.textContent = this.place === null ? "The whole picture looks at" : `Row ${row + 1}, column ${column + 1} looks at`;
        this.spot.hidden = this.place === null;
        if (this.place === null) return;
        for (const [side, value] of [["left", column / this.columns], ["top", row / this.rows], ["width", 1 / this.columns], ["height", 1 / this.rows]])
          this.spot.style.setProperty(side, `${100 * value}%`);
      }

      facts(call) {
        if (!this.record.words) return { when: "Here", word: "no word", share: "nothing", peak: "nothing", rest: "Everything" };
        const [map, rest] = [this.of(this.chosen), this.of(this.names.length - 1)];
        const mean = (values) => values.reduce((sum, value) => sum + value, 0) / this.places / WHOLE;
        return { when: this.time === MEAN ? "Over all calls" : `At call ${call + 1}`, word: `“${this.names[this.chosen]}”`, share: percent(mean(map)),
          peak: percent(Math.max(...map) / WHOLE), rest: percent(mean(rest)) };
      }
    }

    return { Words };
  })(studio.illustrated),
);
