// What answers to the reader. All texts are there already, as titles; here they are shown at once, kept on a click, and
// reached by the arrow keys: in each strip and in each map one element can be tabbed to, and arrows go on.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const tip = document.getElementById("tip");

  function made(tag, given) {
    return Object.assign(document.createElement(tag), given);
  }

  // ------------------------------------------------------------------------------------------------------ light, dark

  theme.restore();
  const switching = document.getElementById("theme");
  switching.hidden = false;
  switching.addEventListener("click", theme.toggle);

  // ---------------------------------------------------------------------------------------------------------- tooltip

  for (const element of all("[title]:not(iframe)")) {
    element.dataset.tip = element.title;
    element.removeAttribute("title");
  }

  function show(element) {
    tip.textContent = element.dataset.tip;
    tip.hidden = false;
    const at = element.getBoundingClientRect();
    const left = Math.min(at.left + at.width / 2 - tip.offsetWidth / 2, innerWidth - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
  }

  const hide = () => (tip.hidden = true);
  const tipped = (event) => event.target.closest?.("[data-tip]");
  document.addEventListener("mouseover", (event) => (tipped(event) ? show(tipped(event)) : hide()));
  document.addEventListener("focusin", (event) => tipped(event)?.matches(":focus-visible") && show(tipped(event)));
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  // ------------------------------------------------------------------------------------------------------------- picks

  for (const figure of all("figure")) {
    if (!figure.querySelector(".token, .cell, .pick")) continue;
    const legend = figure.querySelector(":scope > .legend");
    const line = made(legend ? "span" : "div", { className: "readout" });
    line.setAttribute("role", "status");
    if (legend) legend.append(line);
    else figure.querySelector(":scope > :is(.scroll, .strip, .texts)").after(line);
  }
  document.querySelector(".token[data-pos]")?.closest("figure").querySelector(".readout").classList.add("hint");

  /** Mark a token wherever it stands on the page; once more takes the mark away. */
  function pick(element) {
    const pos = element.dataset.pos;
    const again = element.classList.contains("picked");
    for (const other of all(".picked")) other.classList.remove("picked");
    for (const other of all(".readout")) other.textContent = "";
    if (again) return;
    const same = pos === undefined ? [] : all(`[data-pos="${CSS.escape(pos)}"]`);
    for (const other of [element, ...same]) other.classList.add("picked");
    const said = element.dataset.tip ?? same.find((other) => other.dataset.tip && other.matches(".token"))?.dataset.tip;
    element.closest("figure").querySelector(".readout").textContent = said ?? "";
  }

  document.addEventListener("click", (event) => {
    const chosen = event.target.closest(".token, .pick, .cell");
    if (chosen) pick(chosen);
  });

  /** What a button of ours answers to. */
  function answers(element) {
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      pick(element);
    });
  }

  // -------------------------------------------------------------------------------------------------------- arrow keys

  /** One element of a group can be tabbed to; arrows move on. ``across``: how many stand in a line (0: in one). */
  function rove(elements, across) {
    if (!elements.length) return;
    const first = elements.find((e) => e.classList.contains("aimed")) ?? elements[0];
    for (const e of elements) e.tabIndex = e === first ? 0 : -1;
    elements.forEach((element, i) => {
      answers(element);
      element.addEventListener("focus", () => {
        for (const e of elements) e.tabIndex = e === element ? 0 : -1;
      });
      element.addEventListener("keydown", (event) => {
        const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
        const ends = { Home: 0, End: elements.length - 1 };
        const to = event.key in ends ? ends[event.key] : steps[event.key] ? i + steps[event.key] : i;
        if (to === i || !elements[to]) return;
        event.preventDefault();
        elements[to].focus();
      });
    });
  }

  for (const strip of all(".strip")) {
    const tokens = all(".token", strip);
    strip.setAttribute("role", "toolbar");
    for (const token of tokens) {
      token.setAttribute("role", "button");
      if (!token.textContent.trim()) token.setAttribute("aria-label", token.dataset.tip); // spaces have no name
    }
    rove(tokens, 0);
  }
  for (const map of all(".map")) {
    map.setAttribute("role", "grid");
    rove(all(".cell", map), all("tbody tr:first-child .cell", map).length);
  }
  for (const element of all(".pick")) {
    element.setAttribute("role", "button");
    element.tabIndex = 0;
    answers(element);
  }

  // ------------------------------------------------------------------------------------------------- tables, taken away

  /** A cell's texts, numbers in full: one, or one for each of its parts. */
  function fields(cell) {
    const parts = all(".part", cell);
    return (parts.length ? parts : [cell]).map((part) => {
      const number = part.querySelector("data");
      if (number && part.textContent.trim() === number.textContent.trim()) return number.value;
      const copy = part.cloneNode(true);
      for (const inner of all("data", copy)) inner.textContent = inner.value;
      const text = copy.textContent.replace(/\s+/g, " ").trim();
      // Not ours: a spreadsheet would take it for a formula.
      return /^[=+\-@]/.test(text) ? `'${text}` : text;
    });
  }

  /** A table's rows, the first its heading; a group's name stands in each of its rows. */
  function rowsOf(table) {
    const grouped = table.querySelector(".group") !== null;
    const cells = (row) => [...row.cells].filter((cell) => !cell.matches(".group, .bars"));
    const body = [...table.tBodies].flatMap((block) => {
      const name = block.querySelector(".block")?.textContent.trim() ?? "";
      return all("tr:not(.block)", block).map((row) => [...(grouped ? [[name]] : []), ...cells(row).map(fields)]);
    });
    const head = table.tHead ? [[...(grouped ? [["group"]] : []), ...cells(table.tHead.rows[0]).map(fields)]] : [];
    const wide = (body[0] ?? []).map((_, i) => Math.max(...body.map((row) => row[i]?.length ?? 1)));
    const filled = (row) => row.flatMap((field, i) => [...field, ...Array(wide[i] - field.length).fill("")]);
    return [...head, ...body].map(filled);
  }

  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = made("textarea", { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  function saved(name, text) {
    const link = made("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: `${name}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const csv = (field) => (/[",\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);
  for (const figure of all("figure.table")) {
    const table = figure.querySelector("table");
    const name = figure.querySelector("[role='region']").getAttribute("aria-label");
    const line = made("div", { className: "take" });
    const copy = made("button", { type: "button", textContent: "copy", ariaLabel: `copy ${name}` });
    const save = made("button", { type: "button", textContent: "CSV", ariaLabel: `save ${name} as CSV` });
    copy.addEventListener("click", async () => {
      await copied(rowsOf(table).map((row) => row.join("\t")).join("\n"));
      copy.textContent = "copied";
      setTimeout(() => (copy.textContent = "copy"), 1500);
    });
    save.addEventListener("click", () => {
      const file = name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
      saved(file || "table", rowsOf(table).map((row) => `${row.map(csv).join(",")}\n`).join(""));
    });
    line.append(copy, save);
    figure.querySelector(".scroll").before(line);
  }

  // ------------------------------------------------------------------------------------------------------- full screen

  for (const frame of document.fullscreenEnabled ? all(".graph iframe") : []) {
    const line = made("div", { className: "take" });
    const button = made("button", { type: "button", className: "full", textContent: "full screen" });
    button.addEventListener("click", () => frame.requestFullscreen());
    line.append(button);
    frame.before(line);
  }
})();
