// The numbers of a grid's pictures: as a tint and a figure over each, and as lines over an axis.
Object.assign(
  studio.compare,
  (({ escape, heat, scale, figure, range, chart }) => {
    const SOON = 400; // milliseconds, between two looks at all numbers while the grid fills

    class Numbers {
      chosen = ""; // the measure over the cells; "": none
      limits = null; // [lowest, highest] of it in the whole grid
      measures = new Map();

      constructor(board) {
        this.board = board;
        board.part("measure").addEventListener("change", (event) => this.choose(event.target.value));
        for (const name of ["charted", "over"]) board.part(name).addEventListener("change", () => this.draw());
        new ResizeObserver(() => this.draw()).observe(board.part("drawn"));
      }

      // Another grid: what can be chosen.
      begin({ measures, axes }) {
        const { board } = this;
        this.measures = new Map(measures.map((measure) => [measure.name, measure]));
        const options = measures.map(({ name, label }) => `<option value="${name}">${escape(label)}</option>`).join("");
        board.part("measure").innerHTML = `<option value="">None</option>${options}`;
        board.part("measure").value = this.chosen;
        const charted = board.part("charted");
        const before = charted.value;
        charted.innerHTML = options;
        charted.value = before || this.chosen || measures[0].name;
        const long = axes.map(({ title, labels }, n) => [title, n, labels.length]).filter(([, , count]) => count > 1);
        board.part("over").innerHTML = long.map(([title, n]) => `<option value="${n}">${escape(title)}</option>`).join("");
      }

      choose(name) {
        this.chosen = name;
        if (name) this.board.part("charted").value = name;
        this.look();
      }

      lookSoon() {
        this.soon ??= setTimeout(() => {
          this.soon = null;
          this.look();
        }, SOON);
      }

      // All numbers anew: the scale, every cell of this page, the chart.
      look() {
        const { board } = this;
        const measure = this.measures.get(this.chosen);
        this.limits = measure ? range([...board.cells.values()].map((cell) => cell.numbers?.[this.chosen])) : null;
        const line = board.root.querySelector(".grid-scale");
        line.hidden = !this.limits;
        if (this.limits) {
          const [low, high] = line.querySelectorAll("span");
          [low.textContent, high.textContent] = this.limits.map((value) => figure(measure, value));
          line.querySelector("i").style.background = scale();
          line.querySelector("em").textContent = `${measure.label}: ${measure.note}`;
        }
        for (const shot of board.table.shots()) this.tint(shot, board.cells.get(shot.dataset.at));
        this.draw();
      }

      tint(shot, cell) {
        const number = shot.querySelector(".number");
        if (!number) return;
        const value = this.limits ? cell?.numbers?.[this.chosen] : undefined;
        shot.classList.toggle("measured", value !== undefined);
        number.textContent = value === undefined ? "" : figure(this.measures.get(this.chosen), value);
        if (value === undefined) return;
        const [low, high] = this.limits;
        shot.style.setProperty("--heat", heat(high > low ? (value - low) / (high - low) : 0.5));
      }

      // What a cell's numbers are called and say: of all measures, or of the chosen one, its time and its cost.
      facts({ numbers }, brief) {
        const names = brief ? new Set(["seconds", "net_calls", this.chosen]) : this.measures.keys();
        return [...names].flatMap((name) => {
          const measure = this.measures.get(name);
          return measure ? [[measure.label, figure(measure, numbers[name])]] : [];
        });
      }

      // The chart is seen, or no longer.
      toggle(button) {
        const section = this.board.root.querySelector(".grid-chart");
        section.hidden = !section.hidden;
        button.setAttribute("aria-pressed", !section.hidden);
        this.draw();
        if (!section.hidden) section.scrollIntoView({ behavior: "smooth", block: "nearest" });
      }

      draw() {
        const { board } = this;
        const { plan } = board;
        if (!plan || board.root.querySelector(".grid-chart").hidden) return;
        const over = Number(board.part("over").value);
        const by = [1, 0, 2].find((n) => n !== over && plan.axes[n].labels.length > 1);
        const { title, labels } = plan.axes[over];
        const measure = this.measures.get(board.part("charted").value);
        const legend = by === undefined ? "" : `<p class="note">A line for each ${escape(plan.axes[by].title)}</p>`;
        const drawn = board.part("drawn");
        drawn.innerHTML = chart({ title, labels, measure, lines: this.lines(measure, over, by), width: drawn.clientWidth }) + legend;
      }

      // A line for each value of axis `by`; pictures of one cell, and of all pages where those are neither, are averaged.
      lines(measure, over, by) {
        const { plan, cells, page } = this.board;
        const { labels } = plan.axes[over];
        const lines = (by === undefined ? [""] : plan.axes[by].labels).map((label) => ({ label, sums: labels.map(() => [0, 0]) }));
        for (const [key, { numbers }] of cells) {
          const index = key.split(",").map(Number);
          const elsewhere = by !== 2 && over !== 2 && index[2] !== page;
          if (elsewhere || numbers?.[measure.name] === undefined) continue;
          const sum = lines[by === undefined ? 0 : index[by]].sums[index[over]];
          sum[0] += numbers[measure.name];
          sum[1] += 1;
        }
        return lines.map(({ label, sums }) => ({ label, values: sums.map(([sum, count]) => (count ? sum / count : undefined)) }));
      }
    }

    return { Numbers };
  })(studio.compare),
);
