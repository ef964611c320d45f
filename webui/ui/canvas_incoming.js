// How pictures come onto the canvas: chosen, dropped, pasted, photographed. All of them end in the page's own upload
// fields, `#source-file` and `#mask-file`, as if they had been chosen there: Gradio checks them, the server reads them.
studio.canvas.Incoming = (() => {
  const REFUSED = {
    NotAllowedError: "The browser was not allowed to use the camera.",
    NotFoundError: "No camera was found.",
    NotReadableError: "The camera is in use by another program.",
  };

  return class Incoming {
    // `say` tells the person something; `masks` says whether a mask can be taken just now.
    constructor(root, say, masks) {
      Object.assign(this, { root, say, masks, video: root.querySelector("video") });
      for (const type of ["dragenter", "dragover"]) root.addEventListener(type, (event) => this.dragged(event));
      root.addEventListener("dragleave", (event) => root.contains(event.relatedTarget) || this.undragged());
      root.addEventListener("drop", (event) => this.dropped(event));
      root.addEventListener("keydown", (event) => event.key === "Escape" && this.video.srcObject && this.escape(event));
    }

    field(kind) {
      const field = document.querySelector(`#${kind}-file input[type=file]`);
      if (!field) this.say("The picture before this one is still on its way.");
      return field;
    }

    choose(kind) {
      this.field(kind)?.click();
    }

    // One of the page's own buttons.
    press(id, otherwise) {
      const button = studio.button(id);
      if (!button || button.disabled) this.say(otherwise);
      else button.click();
    }

    take(file, kind = "source") {
      if (file.type && !file.type.startsWith("image/")) return this.say("That is not a picture.");
      const field = this.field(kind);
      if (!field) return;
      const files = new DataTransfer();
      files.items.add(file);
      field.files = files.files;
      field.dispatchEvent(new Event("change", { bubbles: true }));
      this.say(`Taking in ${file.name}…`);
    }

    paste(event) {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      const text = event.target.closest?.("input, textarea") && event.clipboardData.getData("text/plain");
      if (!file || text || !this.root.clientHeight) return;
      event.preventDefault();
      this.take(file);
    }

    // Dragging: two places to let go where a mask can be taken; elsewhere Shift means a mask.

    kind(event) {
      return this.masks() && (event.shiftKey || event.target.closest("[data-drop=mask]")) ? "mask" : "source";
    }

    dragged(event) {
      if (!studio.holdsFiles(event)) return;
      event.preventDefault();
      this.root.classList.add("dropping");
      const kind = this.kind(event);
      for (const place of this.root.querySelectorAll("[data-drop]")) {
        place.classList.toggle("here", place.dataset.drop === kind);
      }
    }

    undragged() {
      this.root.classList.remove("dropping");
    }

    dropped(event) {
      this.undragged();
      if (!studio.holdsFiles(event)) return;
      event.preventDefault();
      const [file] = event.dataTransfer.files; // none, of a picture dragged within some browsers
      if (file) this.take(file, this.kind(event));
    }

    // The camera

    async film() {
      if (!navigator.mediaDevices) return this.say("Only pages with https, or of this computer, get the camera.");
      const video = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
      try {
        this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video });
      } catch (error) {
        return this.say(REFUSED[error.name] ?? "The camera could not be started.");
      }
      this.root.dataset.camera = "on";
      this.root.querySelector("[data-do=shoot]").focus();
    }

    async shoot() {
      const { videoWidth: width, videoHeight: height } = this.video;
      if (!width) return; // nothing to be seen yet
      const still = Object.assign(document.createElement("canvas"), { width, height });
      still.getContext("2d").drawImage(this.video, 0, 0);
      this.stop();
      const blob = await new Promise((done) => still.toBlob(done, "image/png"));
      this.take(new File([blob], "camera.png", { type: "image/png" }));
    }

    stop() {
      for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
      this.video.srcObject = null;
      delete this.root.dataset.camera;
    }

    escape(event) {
      event.preventDefault(); // it does not mean "cancel the job" then
      this.stop();
    }
  };
})();
