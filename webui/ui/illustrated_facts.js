// What does not hang on the call: the arrays, the time, the script.
Object.assign(
  studio.illustrated,
  (({ Panel, make, table, bytes, seconds, percent, figure }) => {
    class Arrays extends Panel {
      body({ arrays }) {
        const rows = arrays.map(({ name, shape, dtype, bytes: count }) => [name, shape, dtype, bytes(count)]);
        return [make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Arrays" }, table("Arrays of the run", ["Array", "Shape", "Type", "Size"], rows))];
      }

      facts() { return { ratio: figure(this.record.ratio) }; }
    }

    class Time extends Panel {
      body({ time }) {
        const sum = time.stages.reduce((total, [, value]) => total + value, 0);
        const whole = Math.max(sum, time.wall);
        const parts = [...time.stages, ["the rest", Math.max(0, whole - sum)]].filter(([, value]) => value > 0);
        const said = parts.map(([name, value]) => `${name} ${seconds(value)}`).join(", ");
        const bar = make("div", { class: "stacked", role: "img", "aria-label": said }, ...parts.map(([, value], n) => {
          const part = make("i", { class: `part-${n}` });
          part.style.setProperty("flex-grow", value / whole);
          return part;
        }));
        const rows = parts.map(([name, value], n) => make("tr", {}, make("th", { scope: "row" }, make("i", { class: `part-${n}` }), name), make("td", { text: seconds(value) }), make("td", { text: percent(value / whole) })));
        return [bar, make("table", {}, make("caption", { text: "Time of each stage" }), make("tbody", {}, ...rows))];
      }

      facts() {
        const { time, calls } = this.record;
        const sum = time.stages.reduce((total, [, value]) => total + value, 0);
        return { wall: seconds(time.wall), net: seconds(time.net), share: percent(time.net / time.wall), each: seconds(time.net / calls), sum: seconds(sum) };
      }
    }

    class Script extends Panel {
      wide = true;

      body({ script }) {
        const said = make("p", { class: script.exact ? "exact" : "inexact", text: this.exactness() });
        if (!script.text) return [said];
        const copy = make("button", { type: "button", text: "Copy", onclick: async () => {
          await navigator.clipboard.writeText(script.text);
          copy.textContent = "Copied";
          setTimeout(() => { copy.textContent = "Copy"; }, 1500);
        } });
        return [make("div", { class: "code" }, copy, make("pre", { tabindex: 0, "aria-label": "The script" }, make("code", { text: script.text }))), said];
      }

      exactness() {
        const { exact, why } = this.record.script;
        return exact ? "Exact: it makes this picture bit for bit, with these versions on such a device." : why;
      }

      facts() {
        const { script, about } = this.record;
        return { lines: script.text.trimEnd().split("\n").length, seed: about.seed };
      }
    }

    return { Arrays, Time, Script };
  })(studio.illustrated),
);
