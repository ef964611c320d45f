// The Illustrated tab inside Gradio: what is seen before, while and after a picture is made.
Object.assign(
  studio.illustrated,
  (({ make, Board }) => {
    const EXAMPLE = "a red apple, 3d";
    const MOST_FRAMES = 60;
    let wanted; // asks the server for what there is, once the tab is open
    let expected; // it is about to send something, without being asked

    // From Gradio, once the component is there: see gr.HTML's js_on_load.
    function attach(element, props, watch, tell) {
      const stage = new Stage(element.querySelector(".illustrated"), tell);
      const read = () => props.value && stage.receive(JSON.parse(JSON.stringify(props.value)));
      wanted = () => {
        if (!stage.asked) tell.wanted();
        stage.asked = true;
      };
      expected = () => { stage.asked = true; };
      watch("value", read);
      read();
      if (isOpen()) wanted();
    }

    const isOpen = () => document.querySelector('#tab-illustrated-button[aria-selected="true"]') !== null;

    class Stage {
      asked = false;
      seen = ""; // the job whose previews are in the strip

      constructor(root, tell) {
        Object.assign(this, { root, tell });
        this.live = this.liveParts();
        this.told = make("div", { class: "told", hidden: true });
        this.start = start();
        root.append(this.live, this.start, this.told);
      }

      liveParts() {
        this.preview = make("img", { alt: "Preview of the picture being made" });
        this.fill = make("i");
        this.bar = make("div", { class: "progress", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
        this.headline = make("p", { class: "headline", "aria-live": "polite" });
        this.details = make("p", { class: "details" });
        this.frames = make("div", { class: "strip frames", role: "img", "aria-label": "The previews so far" });
        return make("section", { class: "live", "aria-label": "The picture being made", hidden: true }, make("div", { class: "preview" }, this.preview),
          make("div", {}, this.headline, this.bar, this.details, this.frames));
      }

      // What the server says: of a job that runs, of a record, or of a file to fetch.
      receive({ state, record, file, remembered }) {
        this.asked = true;
        if (file) return fetched(file);
        if (remembered && (this.shown || this.seen)) return; // something newer was faster
        if (record && record.id !== this.shown) {
          this.shown = record.id;
          this.board?.run(false);
          this.board = new Board(this.told, record, Number.isInteger(record.id) ? this.offer(record.id) : []);
        }
        this.follow(state);
      }

      follow(state) {
        const going = state && !state.ended;
        const failed = state?.ended && !state.done;
        this.live.hidden = !going && !failed;
        this.live.classList.toggle("failed", Boolean(failed));
        this.told.hidden = going || !this.shown;
        this.start.hidden = going || Boolean(this.shown);
        if (!state) return;
        if (state.job !== this.seen) {
          this.seen = state.job;
          this.frames.replaceChildren();
        }
        for (const [part, text] of [[this.headline, state.headline], [this.details, state.details]]) if (part.textContent !== text) part.textContent = text;
        this.bar.setAttribute("aria-valuenow", Math.round(100 * state.share));
        this.fill.style.setProperty("width", `${100 * state.share}%`);
        this.preview.hidden = !state.preview;
        if (!state.preview || state.preview === this.preview.getAttribute("src")) return;
        this.preview.src = state.preview;
        if (this.frames.childElementCount === MOST_FRAMES) this.frames.firstChild.remove();
        this.frames.append(make("img", { alt: "", src: state.preview }));
        this.frames.scrollLeft = this.frames.scrollWidth;
      }

      offer(id) {
        const button = (what, text) => make("button", { type: "button", "data-file": what, text, onclick: () => this.tell.files({ id, what }) });
        return [button("npz", "Flight record (.npz)"), button("html", "As a page (.html)")];
      }
    }

    function start() {
      const seen = [
        ["The film", "what the net was given and what it believed, call by call"],
        ["The words", "where the net looks for each of them"],
        ["The prompt's pull", "the same call at another CFG scale, at once"],
        ["Numbers that hold", "every panel checks itself, and says by how much it is off"],
      ];
      const press = make("button", { type: "button", class: "main", text: `Watch “${EXAMPLE}”`, onclick: () => {
        write(EXAMPLE);
        studio.press("watch-run");
      } });
      return make("section", { class: "start" }, make("h3", { text: "See how a picture comes about" }),
        make("p", { text: "Write a prompt and press “Make it and watch”. The run is recorded, without changing the picture, and can then be looked at call by call." }),
        make("ul", {}, ...seen.map(([name, text]) => make("li", {}, make("b", { text: name }), make("span", { text })))), press);
    }

    function write(prompt) {
      const field = document.querySelector("#field-prompt textarea");
      field.value = prompt;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }

    function fetched({ url, name }) {
      const link = make("a", { href: url, download: name });
      document.body.append(link);
      link.click();
      link.remove();
    }

    // On a phone it is below the form: go and see it emerge.
    document.addEventListener("click", (event) => {
      if (event.target.closest?.("#send-illustrated")) expected?.();
      if (event.target.closest?.("#watch-run") && matchMedia("(max-width: 860px)").matches) arrived();
    });
    const arrived = () => document.querySelector("#illustration").scrollIntoView({ behavior: "smooth" });

    return { attach, isOpen, opened: () => wanted?.() };
  })(studio.illustrated),
);
