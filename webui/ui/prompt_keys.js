// Keys that edit a prompt: Ctrl+Up and Ctrl+Down weigh what is selected, or the word or tag at the caret;
// Alt+Left and Alt+Right move a phrase past its neighbour. All of it can be undone with Ctrl+Z.
(() => {
  const STEP = 0.1;
  const LORA_STEP = 0.05;
  const TAG = /<(?:lora|lyco):[^<>\n]*>/gi;
  const WEIGHTED = /^\((.*):\s*([0-9.]+)\s*\)$/s;
  const WORD = /[^\s,.;:()[\]<>|\\]+/g;

  const moved = (weight, step) => String(Number((weight + step).toFixed(2)));
  const around = (pattern, text, from, to) => [...text.matchAll(pattern)].find(({ 0: found, index }) => index <= from && to <= index + found.length);

  // The brackets of a text that are not escaped, as [place, sign].
  const brackets = (text) => [...text.matchAll(/\\.|[()[\]<>]/gs)].filter(({ 0: sign }) => sign.length === 1).map(({ 0: sign, index }) => [index, sign]);

  // The innermost parentheses around a range: [place of the first, place after the last].
  function group(text, from, to) {
    const open = [];
    for (const [at, sign] of brackets(text)) {
      if (sign === "(") open.push(at);
      else if (sign === ")" && open.length) {
        const first = open.pop();
        if (first <= from && to <= at + 1) return [first, at + 1];
      }
    }
  }

  // What a tag becomes when its weights move.
  function tag(found, direction) {
    const [kind, name, ...rest] = found.slice(1, -1).split(":");
    const weights = rest.length ? rest : ["1"];
    return `<${[kind, name, ...weights.map((each) => (/^\s*[-+]?[\d.]+\s*$/.test(each) ? moved(Number(each), direction * LORA_STEP) : each))].join(":")}>`;
  }

  // -> what takes the place of which part of the text, and what is selected in it afterwards.
  function weigh(text, from, to, direction) {
    const lora = around(TAG, text, from, to);
    if (lora) {
      const put = tag(lora[0], direction);
      return { from: lora.index, to: lora.index + lora[0].length, put, select: [0, put.length] };
    }
    while (from < to && /\s/.test(text[from])) from++;
    while (from < to && /\s/.test(text[to - 1])) to--;
    const place = group(text, from, to);
    const parts = place && WEIGHTED.exec(text.slice(...place));
    if (parts) return weighed(...place, parts[1], Number(parts[2]), direction);
    if (from === to) {
      const word = around(WORD, text, from, to);
      if (!word) return null;
      [from, to] = [word.index, word.index + word[0].length];
    }
    return weighed(from, to, text.slice(from, to), 1, direction);
  }

  function weighed(from, to, inner, before, direction) {
    const weight = moved(before, direction * STEP);
    if (Number(weight) < 0) return null;
    const bare = Number(weight) === 1;
    const start = bare ? 0 : 1;
    return { from, to, put: bare ? inner : `(${inner}:${weight})`, select: [start, start + inner.length] };
  }

  // The phrases of a prompt, as [start, end] without the white space around: commas outside all brackets part them.
  function phrases(text) {
    let depth = 0;
    const inside = new Map(brackets(text).map(([at, sign]) => [at, "([<".includes(sign) ? 1 : -1]));
    const ends = [];
    for (let at = 0; at < text.length; at++) {
      depth = Math.max(0, depth + (inside.get(at) ?? 0));
      if (text[at] === "," && depth === 0) ends.push(at);
    }
    return [...ends, text.length].map((end, i) => {
      const start = i ? ends[i - 1] + 1 : 0;
      const bare = text.slice(start, end);
      return [start + bare.length - bare.trimStart().length, start + bare.trimEnd().length];
    });
  }

  function move(text, from, to, direction) {
    const all = phrases(text);
    const at = all.findIndex(([, end]) => from <= end);
    const [one, other] = [all[at], all[at + direction]];
    if (!one || !other) return null;
    const [[a, b], [c, d]] = direction < 0 ? [other, one] : [one, other];
    const [first, between, second] = [text.slice(a, b), text.slice(b, c), text.slice(c, d)];
    const start = direction < 0 ? 0 : second.length + between.length;
    const own = direction < 0 ? second : first;
    return { from: a, to: d, put: second + between + first, select: [start, start + own.length] };
  }

  const KEYS = { ArrowUp: [weigh, 1], ArrowDown: [weigh, -1], ArrowLeft: [move, -1], ArrowRight: [move, 1] };

  document.addEventListener("keydown", (event) => {
    const area = event.target;
    const [edit, direction] = KEYS[event.key] ?? [];
    const asked = edit === weigh ? event.ctrlKey || event.metaKey : event.altKey;
    const others = edit === weigh ? event.altKey : event.ctrlKey || event.metaKey;
    if (!edit || !asked || others || event.shiftKey || !(area instanceof HTMLTextAreaElement) || !studio.prompt(event)) return;
    event.preventDefault();
    const change = edit(area.value, area.selectionStart, area.selectionEnd, direction);
    if (!change) return;
    area.setSelectionRange(change.from, change.to);
    document.execCommand("insertText", false, change.put); // the one way of writing that the browser can undo
    area.setSelectionRange(...change.select.map((at) => change.from + at));
  });
})();
