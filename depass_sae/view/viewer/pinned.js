// What is pinned as a graph of its own: levels from the bottom up, positions from left to right, the edges among them.
const makePinned = (page) => {
  const { el, svg } = dom;
  const { cut, visible, outline, levelOf, boxed } = model;
  const [WIDTH, ROW, EDGE] = [348, 66, 40];

  function places(nodes) {
    const levels = [...new Set([...page.rows()].filter((row) => nodes.some((n) => levelOf(n) === row)))];
    const at = new Map();
    for (const [i, level] of levels.entries()) {
      const row = nodes.filter((n) => levelOf(n) === level).sort((a, b) => (a.pos ?? -1) - (b.pos ?? -1));
      const step = (WIDTH - 2 * EDGE) / Math.max(1, row.length - 1);
      row.forEach((node, k) => at.set(node.id, { x: row.length > 1 ? EDGE + k * step : WIDTH / 2, y: 22 + i * ROW }));
    }
    return { at, height: levels.length * ROW - 14 };
  }

  function edgeLine(edge, at, strongest) {
    const [a, b] = [at.get(edge.source), at.get(edge.target)];
    const look = page.look(edge, strongest);
    const bend = Math.max(18, Math.abs(a.y - b.y) * 0.4);
    const line = svg("path", { class: `edge ${look.hue}`, "stroke-width": look.width.toFixed(2), opacity: look.opacity.toFixed(2), d: `M${a.x} ${a.y}C${a.x} ${a.y - bend} ${b.x} ${b.y + bend} ${b.x} ${b.y}` });
    if (look.dashes.length) line.setAttribute("stroke-dasharray", look.dashes.map((x) => x.toFixed(1)).join(" "));
    line.append(svg("title", {}, page.told(edge)));
    return line;
  }

  function nodeMark(node, { x, y }, room) {
    const text = cut(node.label ? visible(node.label) : node.name, Math.max(4, Math.floor(room / 6)));
    const body = svg("path", { class: "body", d: boxed(node) ? "M-10 -7H10V7H-10Z" : outline(node.kind, 7) });
    const attributes = { class: `node ${node.kind} ${node.diff ?? ""}`, transform: `translate(${x} ${y})`, role: "button", tabindex: 0, "aria-label": text === node.name ? text : `${text}, ${node.name}`, "data-pin": node.id };
    const mark = svg("g", attributes, svg("circle", { class: "hit", r: 13 }), body, svg("text", { y: 19 }, text));
    mark.addEventListener("click", () => page.select(node.id, true));
    mark.addEventListener("keydown", (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), page.select(node.id, true)));
    return mark;
  }

  /** Nothing where fewer than two are pinned. */
  return function drawing() {
    const nodes = [...page.state.pins].map((id) => page.graph.nodes.get(id)).filter(Boolean);
    if (nodes.length < 2) return null;
    const ids = new Set(nodes.map((node) => node.id));
    const edges = page.graph.edges.filter((edge) => ids.has(edge.source) && ids.has(edge.target));
    edges.sort((a, b) => page.through(a) - page.through(b));
    const { at, height } = places(nodes);
    const perRow = new Map();
    for (const { y } of at.values()) perRow.set(y, (perRow.get(y) ?? 0) + 1);
    const strongest = edges.length ? page.through(edges.at(-1)) : 0;
    const lines = edges.map((edge) => edgeLine(edge, at, strongest));
    const marks = nodes.map((node) => nodeMark(node, at.get(node.id), WIDTH / perRow.get(at.get(node.id).y)));
    const drawn = svg("svg", { class: "pinned-graph", viewBox: `0 0 ${WIDTH} ${height + 8}`, role: "group", "aria-label": "the pinned nodes and the edges among them" }, ...lines, ...marks);
    return el("div", { id: "pinned-graph", "data-edges": edges.length }, drawn);
  };
};
