// What answers to the reader. All texts are there already, as titles; here they are shown at once, kept on a click, and
// reached by the arrow keys: in the prompt's strip and in each map one element can be tabbed to, and arrows go on.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const tip = document.getElementById("tip");

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

  /** Mark a token wherever it stands in this feature's part of the page; once more takes the mark away. */
  function pick(element) {
    const feature = element.closest(".feature");
    const line = (element.closest("figure, section").querySelector(".readout") ??
      feature.querySelector(".readout"));
    const pos = element.dataset.pos;
    const again = element.classList.contains("picked");
    for (const other of all(".picked", feature)) other.classList.remove("picked");
    for (const other of all(".readout", feature)) other.textContent = "";
    if (again) return;
    const same = pos === undefined ? [element] : all(`[data-pos="${CSS.escape(pos)}"]`, feature);
    for (const other of same) other.classList.add("picked");
    element.classList.add("picked");
    line.textContent = element.dataset.tip ?? feature.querySelector(`.token[data-pos="${CSS.escape(pos)}"]`).dataset.tip;
  }

  document.addEventListener("click", (event) => {
    const chosen = event.target.closest(".token, .pick, .cell");
    if (chosen) pick(chosen);
  });

  // -------------------------------------------------------------------------------------------------------- arrow keys

  /** One element of a group can be tabbed to; arrows move on. ``across``: how many stand in a line (0: in one). */
  function rove(elements, across) {
    if (!elements.length) return;
    const first = elements.find((e) => e.classList.contains("aimed")) ?? elements[0];
    for (const e of elements) e.tabIndex = e === first ? 0 : -1;
    elements.forEach((element, i) => {
      element.addEventListener("focus", () => {
        for (const e of elements) e.tabIndex = e === element ? 0 : -1;
      });
      element.addEventListener("keydown", (event) => {
        const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
        const ends = { Home: 0, End: elements.length - 1 };
        const to = event.key in ends ? ends[event.key] : steps[event.key] ? i + steps[event.key] : i;
        if (to !== i && elements[to]) {
          event.preventDefault();
          elements[to].focus();
        } else if (event.key === "Enter" || event.key === " ") {
          if (element.tagName === "BUTTON") return;
          event.preventDefault();
          pick(element);
        }
      });
    });
  }

  for (const strip of all(".strip")) rove(all(".token", strip), 0);
  for (const map of all(".map")) rove(all(".cell", map), all("tbody tr:first-child .cell", map).length);

  // ------------------------------------------------------------------------------------------------------- full screen

  for (const button of all(".full")) {
    if (!document.fullscreenEnabled) continue;
    button.hidden = false;
    button.addEventListener("click", () => button.parentElement.querySelector("iframe").requestFullscreen());
  }
})();
