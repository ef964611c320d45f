// The stars that a person gave, by the settings of the cells: they outlive the grid. Kept in the browser.
Object.assign(
  studio.compare,
  (() => {
    const STORED_AS = "studio-stars";
    const MOST = 5000;

    class Stars {
      constructor() {
        this.given = new Set(stored());
      }

      has(settings) { return this.given.has(settings); }

      toggle(settings) {
        if (!this.given.delete(settings)) this.given.add(settings);
        this.store();
      }

      store() {
        try {
          localStorage.setItem(STORED_AS, JSON.stringify([...this.given].slice(-MOST)));
        } catch {} // private windows: the stars last as long as the page
      }
    }

    function stored() {
      try {
        const found = JSON.parse(localStorage.getItem(STORED_AS) ?? "[]");
        return Array.isArray(found) ? found : [];
      } catch {
        return [];
      }
    }

    return { Stars };
  })(),
);
