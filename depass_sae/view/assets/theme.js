// Light or dark: as the reader's system has it, or as the button said last, on this page or another of these.

/** Local storage, which may be missing or full: then what is stored lasts as long as the page. */
function stored(key, given) {
  try {
    if (given === undefined) return JSON.parse(localStorage.getItem(key));
    localStorage.setItem(key, JSON.stringify(given));
  } catch {
    // nothing to be done
  }
  return null;
}

const theme = (() => {
  const KEY = "depass-sae:theme";
  const root = document.documentElement;
  const darkWanted = matchMedia("(prefers-color-scheme: dark)");

  /** Show what was chosen last, if anything was. */
  function restore() {
    const chosen = stored(KEY);
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  }

  function toggle() {
    const dark = (root.dataset.theme ?? (darkWanted.matches ? "dark" : "light")) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    stored(KEY, root.dataset.theme);
  }

  return { KEY, darkWanted, restore, toggle };
})();
