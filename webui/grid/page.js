// The exported grid: looking at it, one picture large, two against each other, numbers as colours.
"use strict";
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const data = JSON.parse($("#data").textContent);
const pictures = new Map($$(".picture").map((button) => [button.dataset.cell, button]));
const root = document.documentElement;
const place = (key) => key.split(",").map(Number); // x, y, z, picture
const keyOf = (x, y, z, k) => [x, y, z, k].join(",");
const source = (key) => $("img", pictures.get(key)).src;
const about = (key) => data.cells[key];

// Pages and sizes

function showPage(z) {
  $$("table").forEach((table) => { table.hidden = Number(table.dataset.z) !== z; });
  $("#page").value = z;
}

function setSide(side) {
  root.style.setProperty("--side", `${side}px`);
}

function fitSide() {
  const columns = Math.max(...$$("table").map((table) => table.rows[0].cells.length - 1));
  const room = (innerWidth - 140) / (columns * data.across) - 12;
  const side = Math.round(Math.min(Math.max(room, 96), data.wide));
  $("#side").value = side;
  setSide(side);
}

root.style.setProperty("--across", data.across);
$$(".picture img").forEach((image) => image.style.setProperty("--share", image.getAttribute("width") / data.wide));
$("#side").addEventListener("input", (event) => setSide(event.target.value));
$("#page").addEventListener("change", (event) => showPage(Number(event.target.value)));
$("#theme").addEventListener("click", () => {
  const dark = getComputedStyle(root).colorScheme === "dark"
    || (getComputedStyle(root).colorScheme.includes(" ") && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
});

// Numbers as colours: viridis (van der Walt & Smith 2015), made even for eyes of all kinds.

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function colour(share) {
  const at = Math.min(share, 0.9999) * (VIRIDIS.length - 1);
  const low = VIRIDIS[Math.floor(at)], high = VIRIDIS[Math.floor(at) + 1];
  return low.map((value, n) => Math.round(value + (high[n] - value) * (at % 1)));
}

function showMeasure(name) {
  const known = [...pictures.keys()].map((key) => about(key).numbers?.[name]).filter((pair) => pair);
  const values = known.map(([value]) => value);
  const low = Math.min(...values), high = Math.max(...values);
  for (const [key, button] of pictures) {
    const pair = about(key).numbers?.[name];
    const number = $(".number", button);
    button.classList.toggle("heated", Boolean(pair));
    number.hidden = !pair;
    if (pair) {
      const share = high > low ? (pair[0] - low) / (high - low) : 0.5;
      const rgb = colour(share);
      number.textContent = pair[1];
      button.style.setProperty("--heat", `rgb(${rgb})`);
      button.style.setProperty("--on", share > 0.55 ? "#000" : "#fff");
    }
  }
  $("#legend").hidden = !known.length;
  if (known.length) {
    $("#low").textContent = known.find(([value]) => value === low)[1];
    $("#high").textContent = known.find(([value]) => value === high)[1];
    $("#legend").title = data.measures[name];
  }
}

$("#measure").addEventListener("change", (event) => showMeasure(event.target.value));
$("#starred").addEventListener("change", (event) => {
  for (const [key, button] of pictures) button.classList.toggle("faded", event.target.checked && !about(key).star);
});

// What a picture is, beside the pointer or the focus

const hint = $("#hint");

function showHint(button) {
  hint.textContent = about(button.dataset.cell).text;
  hint.hidden = false;
  const near = button.getBoundingClientRect(), own = hint.getBoundingClientRect();
  const below = near.bottom + own.height + 8 < innerHeight;
  hint.style.left = `${Math.max(4, Math.min(near.left, innerWidth - own.width - 4))}px`;
  hint.style.top = `${Math.max(4, below ? near.bottom + 4 : near.top - own.height - 4)}px`;
}

const hideHint = () => { hint.hidden = true; };
for (const button of pictures.values()) {
  button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") showHint(button); });
  button.addEventListener("focus", () => { if (button.matches(":focus-visible")) showHint(button); });
  button.addEventListener("pointerleave", hideHint);
  button.addEventListener("blur", hideHint);
  button.addEventListener("click", () => (marking() ? mark(button.dataset.cell) : enlarge(button.dataset.cell)));
}
$("#grid").addEventListener("scroll", hideHint);

// One picture, large

const viewer = $("#viewer");
let shown = "";

function enlarge(key) {
  shown = key;
  const [, , z] = place(key);
  showPage(z);
  hideHint();
  $("img", viewer).src = source(key);
  $("img", viewer).alt = about(key).name;
  $(".grow", viewer).textContent = about(key).name;
  $(".foot", viewer).textContent = about(key).text;
  if (!viewer.open) viewer.showModal();
}

const LESS = (a, b) => a.reduce((found, value, n) => found || value - b[n], 0);

/** The next picture there is from here, left (-1) or right (1): of the same cell, then of the same row. */
function beside(key, way) {
  const [x, y, z, k] = place(key);
  const row = [...pictures.keys()].map(place).filter((other) => other[1] === y && other[2] === z);
  const ahead = row.filter((other) => way * LESS([other[0], other[3]], [x, k]) > 0);
  ahead.sort((a, b) => way * LESS([a[0], a[3]], [b[0], b[3]]));
  return ahead.length ? keyOf(...ahead[0]) : key;
}

/** The next picture there is up or down (axis 1), or on another page (axis 2). */
function along(key, axis, way) {
  const here = place(key);
  const line = [...pictures.keys()].map(place)
    .filter((other) => other.every((value, n) => n === axis || value === here[n]) && way * (other[axis] - here[axis]) > 0);
  line.sort((a, b) => way * (a[axis] - b[axis]));
  return line.length ? keyOf(...line[0]) : key;
}

const STEPS = {
  ArrowLeft: (key) => beside(key, -1),
  ArrowRight: (key) => beside(key, 1),
  ArrowUp: (key) => along(key, 1, -1),
  ArrowDown: (key) => along(key, 1, 1),
  PageUp: (key) => along(key, 2, -1),
  PageDown: (key) => along(key, 2, 1),
};

addEventListener("keydown", (event) => {
  if (!viewer.open || !STEPS[event.key]) return;
  event.preventDefault();
  enlarge(STEPS[event.key](shown));
});
$$("[data-step]").forEach((button) => button.addEventListener("click", () => enlarge(STEPS[button.dataset.step](shown))));
viewer.addEventListener("close", () => pictures.get(shown).focus());
$("#against").addEventListener("click", () => {
  viewer.close();
  setMarking(true);
  mark(shown);
});
$$("[data-close]").forEach((button) => button.addEventListener("click", () => button.closest("dialog").close()));

// Two pictures against each other

const pairing = $("#pairing"), pair = $(".pair");
let marked = [], blinking = 0;

const marking = () => $("#compare").getAttribute("aria-pressed") === "true";

function setMarking(on) {
  $("#compare").setAttribute("aria-pressed", on);
  $("#compare").textContent = on ? "Choose two pictures" : "Compare two";
  marked = [];
  for (const button of pictures.values()) {
    if (on) button.setAttribute("aria-pressed", false);
    else button.removeAttribute("aria-pressed");
  }
}

function mark(key) {
  marked = marked.includes(key) ? marked.filter((other) => other !== key) : [...marked, key];
  pictures.get(key).setAttribute("aria-pressed", marked.includes(key));
  if (marked.length === 2) compare(...marked);
}

function compare(first, second) {
  hideHint();
  $(".first", pair).src = source(first);
  $(".second", pair).src = source(second);
  $(".grow", pairing).textContent = `Left: ${about(first).name}\nRight: ${about(second).name}`;
  pairing.showModal();
  setWay("slider");
  setSlider(50);
  $("#at").focus();
}

function setWay(way) {
  pair.dataset.way = way;
  $$("[data-way]", $("#ways")).forEach((button) => button.setAttribute("aria-pressed", button.dataset.way === way));
  $("#at").hidden = way !== "slider";
  $("#gains").hidden = way !== "difference";
  $("#flip").hidden = way !== "blink";
  clearInterval(blinking);
  if (way === "blink") {
    pair.dataset.shown = 1;
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) blinking = setInterval(flip, 700);
  }
  if (way === "difference") drawDifference();
}

function setSlider(share) {
  $("#at").value = share;
  pair.style.setProperty("--at", `${$("#at").value}%`);
}

function flip() {
  pair.dataset.shown = pair.dataset.shown === "1" ? 2 : 1;
}

async function pixels(image, width, height) {
  await image.decode();
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

async function drawDifference() {
  const [first, second] = $$("img", pair), canvas = $("canvas", pair), gain = Number($("#gain").value);
  await first.decode();
  const width = first.naturalWidth, height = first.naturalHeight;
  const a = await pixels(first, width, height), b = await pixels(second, width, height);
  let squares = 0;
  for (let n = 0; n < a.data.length; n += 1) {
    if (n % 4 === 3) continue;
    const apart = a.data[n] - b.data[n];
    squares += apart * apart;
    a.data[n] = Math.abs(apart) * gain;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(a, 0, 0);
  const share = Math.sqrt(squares / (width * height * 3)) / 2.55;
  $("#apart").textContent = squares ? `RMS difference ${share.toFixed(2)} %` : "No pixel differs";
}

$("#compare").addEventListener("click", () => setMarking(!marking()));
$("#at").addEventListener("input", (event) => setSlider(event.target.value));
$("#gain").addEventListener("input", drawDifference);
$("#flip").addEventListener("click", () => { clearInterval(blinking); flip(); });
$$("[data-way]", $("#ways")).forEach((button) => button.addEventListener("click", () => setWay(button.dataset.way)));
for (const kind of ["pointerdown", "pointermove"]) {
  pair.addEventListener(kind, (event) => {
    if (pair.dataset.way !== "slider" || !event.buttons) return;
    event.preventDefault();
    if (kind === "pointerdown") pair.setPointerCapture(event.pointerId);
    const box = pair.getBoundingClientRect();
    setSlider(((event.clientX - box.left) / box.width) * 100);
  });
}
addEventListener("keydown", (event) => {
  if (!pairing.open) return;
  const way = ["slider", "beside", "blink", "difference"][Number(event.key) - 1];
  if (way) setWay(way);
  else if (pair.dataset.way === "slider" && event.target !== $("#at") && event.key.match(/^Arrow(Left|Right)$/)) {
    event.preventDefault();
    setSlider(Number($("#at").value) + (event.key === "ArrowLeft" ? -1 : 1));
  }
});
pairing.addEventListener("close", () => {
  clearInterval(blinking);
  setMarking(false);
  $("#compare").focus();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  hideHint();
  if (marking() && !pairing.open) setMarking(false);
});

$("#tools").hidden = false;
showPage(0);
fitSide();
