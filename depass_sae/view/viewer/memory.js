// What a reader made of the page, as text in the address and as a value in the file, and the way back. Both come from
// elsewhere: whatever is not of the form that is expected counts as not said.
const memory = (() => {
  const AT_FIRST = { nodes: 25, edges: null, by: "weight", heads: true, path: null };
  const LONGEST = 300; // of a label or a name

  const text = (x) => typeof x === "string";
  const count = (x) => (x === "all" ? Infinity : Number.isInteger(x) && x > 0 ? x : undefined);
  const labels = (x) =>
    Object.entries(x ?? {}).filter(([key, label]) => text(key) && text(label)).map(([key, label]) => [key, label.slice(0, LONGEST)]);

  /** A state of the form that the page has it in. */
  function formed(given) {
    const found = given && typeof given === "object" ? given : {};
    const list = (x) => (Array.isArray(x) ? x : []);
    const groups = list(found.groups).filter((group) => group && text(group.name) && Array.isArray(group.nodes));
    return {
      nodes: count(found.nodes) ?? AT_FIRST.nodes,
      edges: count(found.edges) ?? null,
      by: found.by === "effect" ? "effect" : "weight",
      heads: found.heads !== false,
      path: text(found.path) ? found.path : null,
      pins: list(found.pins).filter(text),
      groups: found.groups === undefined ? undefined : groups,
      labels: labels(found.labels),
    };
  }

  /** The same as plain values that JSON holds, without what nobody changed. */
  function plain({ pins, groups, labels: changed, ...rest }) {
    const kept = Object.entries(rest).filter(([key, x]) => x !== AT_FIRST[key]);
    const said = kept.map(([key, x]) => [key, x === Infinity ? "all" : x]);
    if (pins.length) said.push(["pins", pins]);
    if (groups) said.push(["groups", groups]);
    if (changed.length) said.push(["labels", Object.fromEntries(changed)]);
    return Object.fromEntries(said);
  }

  function toFragment(state) {
    const said = new URLSearchParams();
    for (const [key, x] of Object.entries(plain(state))) said.set(key, text(x) ? x : JSON.stringify(x));
    return said.toString();
  }

  /** What the address says; null where it says nothing. */
  function ofFragment(fragment) {
    const said = [...new URLSearchParams(fragment.replace(/^#/, ""))].filter(([, x]) => x);
    const valueOf = (x) => {
      try {
        return JSON.parse(x);
      } catch {
        return x;
      }
    };
    return said.length ? formed(Object.fromEntries(said.map(([key, x]) => [key, key === "path" ? x : valueOf(x)]))) : null;
  }

  /** Steps back and forth over what `of` gives; `to` takes it. */
  function steps(of, to) {
    const [done, undone] = [[], []];
    const step = (from, into) => {
      if (!from.length) return false;
      into.push(of());
      to(from.pop());
      return true;
    };
    return {
      before() {
        done.push(of());
        undone.length = 0;
      },
      back: () => step(done, undone),
      forth: () => step(undone, done),
    };
  }

  return { AT_FIRST, formed, plain, toFragment, ofFragment, steps };
})();
