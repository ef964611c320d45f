// The comparison tab: the grid inside Gradio's component, and when what is asked for is planned again.
Object.assign(
  studio.compare,
  (({ Board }) => {
    // From Gradio, once the component is there: see gr.HTML's js_on_load.
    function attach(element, props, watch, tell) {
      const board = new Board(element.querySelector(".grid-app"), tell, changed);
      const read = () => props.value && board.receive(JSON.parse(JSON.stringify(props.value)));
      watch("value", read);
      read();
    }

    const isOpen = () => document.querySelector('#tab-compare-button[aria-selected="true"]') !== null;

    // On a phone the grid is below what varies: go and see it fill.
    document.addEventListener("click", (event) => {
      if (event.target.closest?.("#grid-run") && matchMedia("(max-width: 860px)").matches) {
        document.querySelector("#comparison").scrollIntoView({ behavior: "smooth" });
      }
    });

    // Something of the form or the axes has changed: plan again, if it is seen. Waits for the last of many.
    let planning;
    function changed() {
      clearTimeout(planning);
      planning = setTimeout(() => isOpen() && studio.button("grid-look")?.click(), 250);
    }

    // How cells are made is this browser's choice, and stays so.
    const CELLS = "studio-cells";
    const rememberCells = (cells) => { localStorage.setItem(CELLS, cells); };
    const rememberedCells = () => (["exact", "together"].includes(localStorage.getItem(CELLS)) ? localStorage.getItem(CELLS) : "auto");

    return { attach, isOpen, changed, rememberCells, rememberedCells };
  })(studio.compare),
);
