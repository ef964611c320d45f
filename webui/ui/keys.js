// Keyboard, and files dropped on the prompts. Runs once, before the page is drawn: it listens on the document.
const studio = {
  // Both sides in the proportion "a:b", with about as many pixels as now, in steps of 8.
  shape(aspect, width, height) {
    const [a, b] = aspect.split(":").map(Number);
    const { step } = document.querySelector("#field-width input[type=range]"); // the model's
    const side = (ratio) => Math.max(64, Math.round(Math.sqrt(width * height * ratio) / step) * step);
    return [side(a / b), side(b / a)];
  },

  // What an event sends of the canvas when the strokes do not matter: they can be many.
  light: (...values) => values.map((value) => (value?.strokes ? { ...value, strokes: [] } : value)),

  // A tab was opened: the hidden field knows which, and the canvas offers what is used there.
  opened(task) {
    studio.canvas.mode(task === "inpaint" ? "inpaint" : "sketch");
    return task;
  },

  // A picture was sent to a tab: begin there.
  arrived(tool) {
    document.querySelector(`#canvas button[data-tool="${tool}"]`)?.click();
    document.querySelector("#canvas")?.scrollIntoView({ behavior: "smooth", block: "nearest" });
  },

  sizeNote(canvas, width, height, area, task) {
    if (!canvas?.source) return '<p class="note">Choose a picture, or draw one on a blank sheet.</p>';
    const size = (w, h) => `<b>${Number(w)} × ${Number(h)}</b>`;
    const [source, made] = [size(canvas.width, canvas.height), size(width, height)];
    if (task === "inpaint" && area === "Only masked")
      return `<p class="note">The masked part is made at ${made} and put back into ${source}.</p>`;
    return `<p class="note">${source} ${source === made ? "keeps its size" : `becomes ${made}`}.</p>`;
  },

  // Another source is on the canvas: how much of it will be left?
  sourceChanged(canvas) {
    const source = canvas?.source ?? "";
    if (source !== studio.source) studio.button("survive")?.click();
    studio.source = source;
  },

  // A job has ended: show how much of the source is left, if the device was too busy for it.
  freed() {
    if (studio.source && document.querySelector("#survival figcaption")?.textContent) studio.button("survive")?.click();
  },

  // The canvas or a control of the mask has changed: look again at what is open. Waits for the last of many.
  maskChanged() {
    clearTimeout(studio.lookingAgain);
    studio.lookingAgain = setTimeout(() => {
      if (document.querySelector("#mask-view figure")?.checkVisibility()) studio.button("mask-view-update")?.click();
    }, 150);
  },

  button: (id) => document.querySelector(`#${id}:is(button), #${id} button`),

  // As if a person pressed it, who can only press what the open tab shows.
  press(id) {
    const button = studio.button(id);
    if (button?.checkVisibility()) button.click();
  },

  // Which of three the open tab has: the tabs of pictures, Compare, Illustrated.
  ofTab: (picture, grid, watched) => (studio.compare.isOpen() ? grid : studio.illustrated.isOpen() ? watched : picture),

  // Number fields hand on what was typed when they lose the focus.
  commit() {
    const field = document.activeElement;
    if (field instanceof HTMLInputElement) {
      field.blur();
      field.focus();
    }
  },

  // Esc belongs to an open list or to a picture under the keyboard before it means "cancel".
  escapeIsTaken: (event) =>
    event.defaultPrevented || event.target.closest("[aria-expanded='true'], #gallery") !== null,

  // The gallery's button shows the large picture full size, and back.
  fullSize: () => document.querySelector("#gallery .icon-button[aria-label*='ullscreen' i]")?.click(),

  prompt: (event) => event.target.closest?.("#field-prompt, #field-negative_prompt"),
  holdsFiles: (event) => Array.from(event.dataTransfer?.types ?? []).includes("Files"),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    studio.commit();
    studio.press(studio.ofTab("generate", "grid-run", "watch-run"));
  } else if (event.key === "Escape" && document.querySelector("#gallery.fullscreen")) {
    studio.fullSize();
  } else if (event.key === "Escape" && !studio.escapeIsTaken(event)) {
    studio.press(studio.ofTab("cancel", "grid-stop", "watch-stop"));
  }
});

// On a phone the picture is below the prompts: go and see it emerge.
document.addEventListener("click", (event) => {
  if (event.target.closest?.("#generate") && matchMedia("(max-width: 860px)").matches) {
    document.querySelector("#picture").scrollIntoView({ behavior: "smooth" });
  }
});

document.addEventListener("dragover", (event) => {
  if (!studio.holdsFiles(event)) return;
  const prompt = studio.prompt(event);
  prompt?.classList.add("dropping");
  if (prompt) event.preventDefault();
});

for (const end of ["dragleave", "drop"]) {
  document.addEventListener(end, (event) => studio.prompt(event)?.classList.remove("dropping"));
}

// A file dropped on a prompt goes to the hidden upload field, as if it had been chosen there.
document.addEventListener("drop", (event) => {
  const input = document.querySelector("#dropped input[type=file]");
  if (!studio.prompt(event) || !studio.holdsFiles(event) || !input) return;
  event.preventDefault();
  const files = new DataTransfer();
  files.items.add(event.dataTransfer.files[0]);
  input.files = files.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// The gallery gives the focus to its thumbnails when a picture arrives, and the page scrolls there, whatever
// the person is doing. It may do so only while the focus is in it.
const focus = HTMLElement.prototype.focus;
HTMLElement.prototype.focus = function (options) {
  const gallery = this.closest("#gallery");
  if (!gallery || gallery.contains(document.activeElement)) focus.call(this, options);
};

// A click on the large picture shows it full size (the gallery itself would turn to the next one).
document.addEventListener(
  "click",
  (event) => {
    if (!event.target.closest?.("#gallery .media-button")) return;
    event.stopPropagation();
    studio.fullSize();
  },
  true,
);
