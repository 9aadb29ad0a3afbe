// Search, fold, copy a path, follow a reference: for every tree of the page that has none of it yet.
(() => {
  const rowOf = (item) => (item.matches("details") ? item.firstElementChild : item);
  const parentOf = (item) => item.parentElement.closest("[data-path]");

  // `layers[7]` also finds the row that `layers[0:32]` are folded into.
  function says(text, word) {
    for (const [, n] of word.matchAll(/\[(\d+)\]/g)) {
      text = text.replace(/\[(\d+):(\d+)\]/g, (all, from, to) =>
        Number(from) <= n && n < Number(to) ? `[${n}]` : all);
    }
    return text.includes(word);
  }

  function start(tree) {
    tree.dataset.ready = "yes";
    tree.querySelector(".tools").hidden = false;
    const input = tree.querySelector("input");
    const count = tree.querySelector(".count");
    const items = [...tree.querySelectorAll("[data-path]")];
    let texts = null; // what is searched, made when it is first needed
    let before = null; // what was open before the search began

    function read() {
      return new Map(items.map((item) => {
        const row = rowOf(item).cloneNode(true);
        row.querySelector(".preview")?.remove();
        const text = row.textContent.replace(/\s+/g, " ");
        return [item, `${item.dataset.path} ${text} ${text.replace(" = ", "=")}`.toLowerCase()];
      }));
    }

    // A row whose parent's path says it all is no hit: `attention` finds the node, not its values.
    function matches(item, words) {
      const above = parentOf(item)?.dataset.path.toLowerCase() ?? "";
      const text = texts.get(item);
      return words.every((w) => says(text, w)) && !words.every((w) => says(above, w));
    }

    function search() {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length) {
        before ??= new Map(items.map((item) => [item, item.open]));
        texts ??= read();
        filter(words);
      } else {
        for (const item of items) {
          item.hidden = false;
          rowOf(item).classList.remove("hit");
          if (before && item.matches("details")) item.open = before.get(item);
        }
        before = null;
        count.textContent = `${items.length} rows`;
      }
    }

    function filter(words) {
      const hits = new Set(items.filter((item) => matches(item, words)));
      const above = new Set(); // rows that a hit lies below
      for (const hit of hits) {
        for (let p = parentOf(hit); p && !above.has(p); p = parentOf(p)) above.add(p);
      }
      const free = new Set(); // rows below the innermost hit: folded, but there to be opened
      for (const item of items) {
        const parent = parentOf(item);
        const inside = free.has(parent) || (hits.has(parent) && !above.has(parent));
        if (inside) free.add(item);
        item.hidden = !(inside || hits.has(item) || above.has(item));
        if (item.matches("details")) item.open = above.has(item);
        rowOf(item).classList.toggle("hit", hits.has(item));
      }
      count.textContent = `${hits.size} of ${items.length}`;
    }

    function follow(path) {
      const item = items.find((i) => i.dataset.path === path);
      if (input.value) {
        input.value = "";
        search();
      }
      for (let p = item; p; p = parentOf(p)) if (p.matches("details")) p.open = true;
      const row = rowOf(item);
      row.scrollIntoView({ block: "center" });
      row.classList.remove("flash");
      void row.offsetWidth; // begins the animation anew
      row.classList.add("flash");
    }

    tree.addEventListener("click", (event) => {
      const target = event.target;
      if (target.matches("[data-to], .name")) event.preventDefault(); // or the row would fold
      if (target.matches("[data-to]")) follow(target.dataset.to);
      if (target.matches(".name")) copy(target.closest("[data-path]").dataset.path, target);
      if (target.matches("[data-open]")) {
        for (const item of items) if (item.matches("details")) item.open = Boolean(target.dataset.open);
      }
    });
    tree.addEventListener("mouseover", (event) => {
      if (event.target.matches(".name")) {
        event.target.title = `${event.target.closest("[data-path]").dataset.path} (click to copy)`;
      }
    });
    input.addEventListener("input", search);
    search();
  }

  async function copy(path, name) {
    try {
      await navigator.clipboard.writeText(path);
    } catch {
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = path;
      area.select();
      document.execCommand("copy"); // where the page is not served securely
      area.remove();
    }
    name.classList.add("flash");
    setTimeout(() => name.classList.remove("flash"), 1600);
  }

  document.querySelectorAll(".nanigpt-tree:not([data-ready])").forEach(start);
})();
