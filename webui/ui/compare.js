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

    return { attach, isOpen, changed };
  })(studio.compare),
);
