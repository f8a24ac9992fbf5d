// The drawing and everything that answers to the reader. The data are two JSON blocks: the graph in node-link form, and
// what the page adds to it (names, a key). State is one object; a change of it runs down from where it matters:
// rebuild (groups, labels) -> refresh (filters, layout, drawing) -> mark (what is highlighted), and drawPanel beside it.
// Edges are drawn on a canvas; nodes, and the edges of what is highlighted, as SVG.
const page = (() => {
  const { visible, plain, signed, cut, many, cleaned, contract, sortEdges, within, layout, levelOf, captioned, letters, boxed, outline } = model;
  const { byId, el, svg } = dom;
  const MAX_PIXELS = 24e6; // of the canvas
  const IN_DIFF = { only_a: "only in A", only_b: "only in B", both: "in both" };

  const doc = JSON.parse(byId("graph").textContent);
  const extra = JSON.parse(byId("extra").textContent);
  const diff = doc.graph.diff;
  const sides = diff ? ["_a", "_b"] : [""];
  const tokens = doc.graph.tokens ?? [];
  const all = new Map(doc.nodes.map((node, i) => [node.id, { ...node, name: extra.names[i] }]));
  const links = doc.edges.map((edge, i) => ({
    ...{ ...edge, through_weight: extra.through.weight[i], through_effect: extra.through.effect[i] },
  }));

  const state = {
    by: "weight",
    nodeCount: memory.AT_FIRST.nodes,
    edgeCount: null, // null: as many as say nearly all
    heads: true,
    path: null, // the node that all ways lead through
    labels: new Map(), // those that the reader changed, by `labelKey`
    query: "",
    zoom: null, // null: as the layout has it
    selected: null,
    hovered: null,
    current: null, // the one node that Tab reaches
    pins: new Set(),
    picked: new Set(),
    groups: [],
  };
  let graph; // with the groups made one node each
  let view; // what of it is drawn, and where

  const value = (edge) => model.valueOf(edge, state.by);
  const size = (edge) => Math.abs(value(edge));
  const scale = () => state.zoom ?? view.zoom;
  const through = (edge) => model.through(edge, state.by);
  const nodeElement = (id) => byId("nodes").querySelector(`[data-id="${CSS.escape(id)}"]`);

  const { drawPanel, showTooltip } = makePanel({
    ...{ doc, all, diff, sides, state, size, value, layerName, select, pin, ungroup, close, IN_DIFF },
    ...{ through, look, told, rename, throughOnly, rows: () => model.levelsOf([...graph.nodes.values()]).map((row) => row.level) },
    get graph() {
      return graph;
    },
    get view() {
      return view;
    },
  });

  // ---------------------------------------------------------------------------------------------------------- drawing

  function rebuild() {
    for (const [i, node] of [...all.values()].entries()) node.label = state.labels.get(labelKey(node)) ?? doc.nodes[i].label;
    graph = contract(all, links, state.groups);
    sortEdges(graph, state.by);
    if (!graph.nodes.has(state.path)) state.path = null;
    drawTitles();
    refresh();
  }

  /** Whose label it is: a feature's wherever it stands. */
  function labelKey(node) {
    return node.kind === "feature" ? `${levelOf(node)}/${node.index}` : node.id;
  }

  /** The targets' labels in the heading. */
  function drawTitles() {
    for (const part of document.querySelectorAll("[data-label-of]")) {
      part.textContent = visible(all.get(part.dataset.labelOf)?.label ?? "");
    }
  }

  function refresh() {
    const stage = byId("stage");
    const always = (node) => node.id === shownAs(state.selected) || state.pins.has(node.id) || node.id === state.path;
    const kept = within(graph, { ...state, always });
    const edges = kept.edges.sort((a, b) => through(a) - through(b));
    const room = { width: stage.offsetWidth, height: stage.offsetHeight };
    const plan = layout(kept.nodes, tokens, room);
    const single = kept.edges.filter((edge) => !forMany(edge));
    const strongest = model.largest(single.length ? single : edges, through);
    // What is a little too large is shown whole.
    const whole = Math.min(1, room.width / plan.width, room.height / plan.height);
    const zoom = whole >= plan.zoom / 1.25 ? whole : plan.zoom;
    view = { ...kept, ...plan, zoom, drawn: new Set(edges), strongest };
    drawCounts();
    drawNodes();
    resize();
    mark();
  }

  /** Whether an edge comes from what stands for many nodes: it makes no other edge thin. */
  const forMany = (edge) => ["remainder", "constant", "bias"].includes(graph.nodes.get(edge.source).kind);

  function drawCounts() {
    const count = (id, part, whole) => {
      const slider = byId(`${id}-slider`);
      slider.max = Math.max(1, whole);
      slider.value = part;
      byId(`${id}-count`).textContent = `${part.toLocaleString("en")} of ${whole.toLocaleString("en")}`;
      slider.setAttribute("aria-valuetext", byId(`${id}-count`).textContent);
    };
    count("edge", view.edges.length, view.of.edges);
    count("node", view.nodes.length, view.of.nodes);
    const path = graph.nodes.get(state.path);
    byId("path").hidden = !path;
    byId("path-name").textContent = path?.name ?? "";
    byId("heads").checked = state.heads;
    for (const radio of document.querySelectorAll("[name=by]")) radio.checked = radio.value === state.by;
  }

  function resize() {
    resizeSheet();
    drawGround();
    drawEdges();
  }

  function resizeSheet() {
    const { width, height } = view;
    for (const id of ["sheet", "edges", "drawing", "ground"]) {
      byId(id).style.width = `${width * scale()}px`;
      byId(id).style.height = `${height * scale()}px`;
    }
    for (const id of ["drawing", "ground"]) byId(id).setAttribute("viewBox", `0 0 ${width} ${height}`);
    follow();
  }

  function drawGround() {
    const { rows, columns, width, height } = view;
    const bands = rows.map((row) => svg("rect", { class: "band", x: 0, y: row.y, width, height: row.height }));
    const lines = columns.slice(1).map((c) => svg("line", { class: "rule", x1: c.x, x2: c.x, y1: 0, y2: height }));
    byId("ground").replaceChildren(...bands, ...lines);
  }

  /** The ends and bend of an edge: it leaves upwards and arrives from below. */
  function curve(edge) {
    const [a, b] = [view.at.get(edge.source), view.at.get(edge.target)];
    const [y1, y2] = [a.y - a.r, b.y + b.r];
    return { x1: a.x, y1, x2: b.x, y2, bend: Math.max(36, Math.abs(y1 - y2) * 0.45) };
  }

  /** Of what comes through the strongest edge. */
  const strength = (edge, strongest = view.strongest) => Math.min(1, through(edge) / (strongest || 1));

  /** How an edge looks: by what of the target comes through it. */
  function look(edge, strongest) {
    const share = strength(edge, strongest);
    const width = 0.5 + 4.5 * share ** 0.75;
    const crowd = 0.4 + 0.6 * Math.min(1, Math.sqrt(500 / Math.max(1, view.edges.length)));
    const opacity = (0.07 + 0.83 * share ** 0.5) * (forMany(edge) ? 0.45 : 1) * crowd;
    return { width, opacity, hue: hue(edge), dashes: dashes(edge, width) };
  }

  function dashes(edge, width) {
    if (edge.kind === "head") return [1.5, 3];
    if (model.LOOKED.includes(edge.kind)) return [1.5, 3, 7, 3];
    return value(edge) < 0 ? [4 + width, 2 + width] : [];
  }

  function hue(edge) {
    if (edge.diff) return edge.diff.replace("_", "-");
    return value(edge) < 0 ? "negative" : "positive";
  }

  function drawEdges() {
    const canvas = byId("edges");
    const pen = canvas.getContext("2d");
    const wanted = scale() * (window.devicePixelRatio || 1);
    const ratio = Math.min(wanted, Math.sqrt(MAX_PIXELS / (view.width * view.height)));
    canvas.width = Math.ceil(view.width * ratio);
    canvas.height = Math.ceil(view.height * ratio);
    pen.scale(ratio, ratio);
    const hues = ["positive", "negative", "only-a", "only-b", "both"];
    const colours = Object.fromEntries(hues.map((name) => [name, colour(name)]));
    for (const edge of view.edges) {
      const { x1, y1, x2, y2, bend } = curve(edge);
      const shown = look(edge);
      pen.strokeStyle = colours[shown.hue];
      pen.globalAlpha = shown.opacity;
      pen.lineWidth = shown.width;
      pen.setLineDash(shown.dashes);
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.bezierCurveTo(x1, y1 - bend, x2, y2 + bend, x2, y2);
      pen.stroke();
    }
  }

  /** A colour of the style sheet as the canvas needs it: resolved for light or dark. */
  function colour(variable) {
    const probe = byId("tooltip");
    probe.style.color = `var(--${variable})`;
    const found = getComputedStyle(probe).color;
    probe.style.color = "";
    return found;
  }

  function drawNodes() {
    const focused = document.activeElement?.dataset?.id;
    const order = readingOrder();
    if (!view.ids.has(state.current)) state.current = order[0]?.id ?? null;
    const layers = view.rows.flatMap((row) => {
      const y = row.y + row.height / 2;
      return [
        svg("rect", { x: 4, y: y - 10, width: 76, height: 20, rx: 4 }),
        svg("text", { class: "layer", x: 12, y: y + 4 }, layerName(row)),
      ];
    });
    const positions = view.columns.slice(1).map((c) => {
      const x = c.x + c.width / 2;
      const at = svg("tspan", { class: "at", x, dy: 13 }, c.gap ? "" : String(c.pos));
      return svg("text", { class: "position", x, y: view.height - 20 }, c.label, at);
    });
    const y = view.height - model.FOOT + 4;
    const foot = svg("rect", { class: "foot", x: 0, y, width: view.width, height: model.FOOT });
    byId("drawing").replaceChildren(
      svg("g", { id: "lit" }),
      svg("g", { id: "nodes" }, ...order.map(drawNode)),
      svg("g", { id: "layers", "aria-hidden": "true" }, ...layers),
      svg("g", { id: "positions", "aria-hidden": "true" }, foot, ...positions),
    );
    if (focused && view.ids.has(focused)) nodeElement(focused).focus({ preventScroll: true });
  }

  function drawNode(node) {
    const { x, y, r } = view.at.get(node.id);
    const box = boxed(node.kind);
    const inside = [];
    const write = (text, attributes) => inside.push(svg("text", attributes, text), " ");
    if (node.kind === "logit" || node.kind === "direction") write(cut(aimed(node), 12), { class: "inside" });
    if (node.kind === "group") {
      write(cut(node.name, 13), { class: "inside", y: -4.5 });
      write(many(node.members.length, "node"), { class: "count", y: 7 });
    }
    if (!box && r >= 5.5 && node.diff && node.diff !== "both")
      write(node.diff === "only_a" ? "A" : "B", { class: "letter" });
    if (captioned(node, view.shape)) write(caption(node), { y: r + 12 });
    const written = inside.map((part) => part.textContent ?? part).join("").trim();
    const attributes = {
      class: `node ${node.kind} ${node.diff ?? ""}`,
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
      role: "button",
      tabindex: node.id === state.current ? 0 : -1,
      "data-id": node.id,
      "aria-label": spoken(node, written),
    };
    return svg(
      "g",
      attributes,
      svg("path", { class: "ring", d: outline(node.kind, r + 3.5) }),
      box || r > 11 ? null : svg("circle", { class: "hit", r: 10.5 }),
      svg("path", { class: "body", d: outline(node.kind, r) }),
      ...inside,
    );
  }

  /** What stands in a target's box: a token, without what all logits are held to alike. */
  function aimed(node) {
    const short = node.name.replace(/^(logit|log-probability) /, "");
    return node.against === "mean" ? short.replace(/ − the vocabulary's mean$/, "") : short;
  }

  function caption(node) {
    const most = node.target ? 40 : letters(node, view.shape);
    if (node.label) return cut(visible(node.label), most);
    if (node.kind === "feature") return `${levelOf(node)}/${node.index}`;
    if (node.kind === "token") return cut(visible(node.token).trim() || "␣", most);
    return node.kind === "head" ? node.name.replace(/^head /, "") : node.kind;
  }

  function layerName({ layer, hook }) {
    if (layer < 0) return "embeddings";
    if (layer >= doc.graph.n_layers) return "logits";
    return hook ? `${layer} ${hook}` : `layer ${layer}`;
  }

  function readingOrder() {
    const rows = new Map(view.rows.map((row, i) => [row.level, i]));
    return [...view.nodes].sort((a, b) => {
      const [p, q] = [view.at.get(a.id), view.at.get(b.id)];
      return rows.get(p.level) - rows.get(q.level) || p.x - q.x || p.y - q.y;
    });
  }

  /** A node's name for those who hear it; it holds what is written at the node, so that it can be asked for by that. */
  function spoken(node, written) {
    const of = node.kind === "group" ? ` of ${many(node.members.length, "node")}` : "";
    const parts = [`${node.kind} ${node.name}${of}`];
    if (node.label) parts.push(visible(node.label));
    if (node.token != null && node.kind !== "token") parts.push(`token ${visible(node.token)}`);
    if (node.diff) parts.push(IN_DIFF[node.diff]);
    const text = `${parts.join(", ")}, influence ${plain(node.influence)}`;
    return !written || text.split(/[ ,]+/).includes(written) ? text : `${written}, ${text}`;
  }

  /** The names of layers and positions stay in sight when the drawing is scrolled. */
  function follow() {
    const stage = byId("stage");
    const up = Math.min(0, (stage.scrollTop + stage.clientHeight) / scale() - view.height);
    stage.classList.toggle("scrolled", stage.scrollLeft > 0);
    byId("layers").setAttribute("transform", `translate(${stage.scrollLeft / scale()} 0)`);
    byId("positions").setAttribute("transform", `translate(0 ${up})`);
  }

  /** Larger or smaller; what is at this place of the window (by default, its middle) stays there. */
  function zoomAt(zoom, x, y) {
    const [stage, sheet] = [byId("stage"), byId("sheet")];
    const room = stage.getBoundingClientRect();
    const [left, top] = [x ?? room.left + stage.clientWidth / 2, y ?? room.top + stage.clientHeight / 2];
    const [before, was] = [scale(), sheet.getBoundingClientRect()];
    state.zoom = Math.min(4, Math.max(0.15, zoom));
    const factor = state.zoom / before;
    resizeSheet();
    const is = sheet.getBoundingClientRect();
    stage.scrollBy(is.left + (left - was.left) * factor - left, is.top + (top - was.top) * factor - top);
    sharpen();
  }

  let blurred = null;
  /** Draws the edges anew once the size stays; until then what is there is stretched. */
  function sharpen() {
    clearTimeout(blurred);
    blurred = setTimeout(drawEdges, 90);
  }

  /** The whole drawing in the window. */
  function fit() {
    const stage = byId("stage");
    zoomAt(Math.min(view.zoom, stage.offsetWidth / view.width, stage.offsetHeight / view.height));
    state.zoom = scale() === view.zoom ? null : state.zoom; // then it follows the window
  }

  // ------------------------------------------------------------------------------------------------------- highlights

  const touching = (id) => [...(graph.inputs.get(id) ?? []), ...(graph.outputs.get(id) ?? [])];
  const shownAs = (id) =>
    graph.nodes.has(id) ? id : [...graph.nodes.values()].find((node) => node.members?.includes(id))?.id;

  /** Shows what is hovered, selected, pinned, picked or found; the edges of the first three whatever the threshold. */
  function mark() {
    const centres = new Set([state.hovered ?? shownAs(state.selected), ...state.pins].filter((id) => view.ids.has(id)));
    const both = (edge) => view.ids.has(edge.source) && view.ids.has(edge.target);
    const lit = [...new Set([...centres].flatMap(touching))].filter(both).sort((a, b) => through(a) - through(b));
    const near = new Set([...centres, ...lit.flatMap((edge) => [edge.source, edge.target])]);
    const query = state.query.trim().toLowerCase();
    const found = new Set(view.nodes.filter((node) => query && matches(node, query)).map((node) => node.id));
    byId("stage").classList.toggle("focused", centres.size > 0);
    byId("stage").classList.toggle("searching", query !== "");
    byId("found").textContent = query ? `${found.size} found` : "";
    byId("lit").replaceChildren(...lit.map(litEdge));
    for (const g of byId("nodes").children) {
      const id = g.dataset.id;
      g.classList.toggle("near", near.has(id));
      g.classList.toggle("selected", id === shownAs(state.selected));
      g.classList.toggle("pinned", state.pins.has(id));
      g.classList.toggle("picked", state.picked.has(id));
      g.classList.toggle("match", found.has(id));
      g.setAttribute("aria-pressed", String(id === state.selected));
    }
    byId("group").disabled = toGroup().length < 2;
  }

  function litEdge(edge) {
    const { x1, y1, x2, y2, bend } = curve(edge);
    const shown = look(edge);
    const attributes = {
      class: `edge ${shown.hue}${view.drawn.has(edge) ? "" : " faint"}`,
      "data-source": edge.source,
      "data-target": edge.target,
      "stroke-width": (shown.width + 0.5).toFixed(2),
      "stroke-dasharray": shown.dashes.map((length) => length.toFixed(1)).join(" ") || null,
      d: `M${x1} ${y1}C${x1} ${y1 - bend} ${x2} ${y2 + bend} ${x2} ${y2}`,
    };
    return svg("path", attributes, svg("title", {}, told(edge)));
  }

  /** An edge in words. */
  function told(edge) {
    const [from, to] = [edge.source, edge.target].map((id) => graph.nodes.get(id).name);
    const looked = model.LOOKED.filter((way) => edge[way]).map((way) => `, ${way} ${signed(edge[way])}`);
    return `${from} → ${to}: weight ${signed(edge.weight)}, effect ${signed(edge.effect)}${looked.join("")}; ${plain(through(edge))} of the target through it`;
  }

  function matches(node, query) {
    const texts = [node, ...(node.members ?? []).map((id) => all.get(id))].flatMap((n) => [n.name, n.label, n.token]);
    return texts.some((text) => visible(text).toLowerCase().includes(query));
  }

  // ----------------------------------------------------------------------------------------------------------- legend

  function drawLegend() {
    const there = new Set(doc.nodes.map((node) => node.kind));
    const icon = (child) => svg("svg", { viewBox: "-9 -7 18 14", "aria-hidden": "true" }, child);
    const shape = (kind) => {
      const d = kind === "logit" || kind === "direction" ? "M-9-5H9V5H-9Z" : outline(kind, 5);
      return icon(svg("g", { class: `node ${kind} ${diff ? "both" : ""}` }, svg("path", { class: "body", d })));
    };
    const line = (name, dash) =>
      icon(svg("path", { class: `edge ${name}`, "stroke-width": 2.2, "stroke-dasharray": dash, d: "M-11 0H11" }));
    const kinds = extra.kinds.filter((kind) => there.has(kind));
    const lines = diff
      ? [
          [line("only-a"), `only in A: ${cut(visible(diff.a), 60)}`],
          [line("only-b"), `only in B: ${cut(visible(diff.b), 60)}`],
          [line("both"), "in both"],
          [line("both", "5 3"), "negative"],
        ]
      : [[line("positive"), "positive"], [line("negative", "5 3"), "negative"]];
    if (there.has("head")) lines.push([line(diff ? "both" : "positive", "1.5 3"), "the same flow by head"]);
    if (doc.edges.some((edge) => model.LOOKED.includes(edge.kind)))
      lines.push([line(diff ? "both" : "positive", "1.5 3 7 3"), "by where heads looked (query, key)"]);
    lines.push([icon(svg("path", { class: "width", d: "M-11 -1L11 -4V4L-11 1Z" })), "width: how much of the target comes through"]);
    byId("legend").replaceChildren(
      ...[...kinds.map((kind) => [shape(kind), kind]), ...lines].map(([image, text]) => el("li", {}, image, text)),
    );
  }

  // ---------------------------------------------------------------------------------------------------------- actions

  const say = (text) => {
    byId("status").textContent = text;
  };

  /** What a reader made of the page, as memory.js has it. */
  const made = () => ({
    ...{ nodes: state.nodeCount, edges: state.edgeCount, by: state.by, heads: state.heads, path: state.path },
    ...{ pins: [...state.pins], labels: [...state.labels] },
    groups: JSON.stringify(state.groups) === JSON.stringify(ownGroups) ? undefined : state.groups,
  });
  const ownGroups = cleaned(doc.graph.groups, all);

  /** Keeps it in the address, so that the page can be passed on, and in this browser but for the thresholds. */
  function save() {
    const { pins, labels } = memory.plain(made());
    stored(`depass-sae:graph:${extra.key}`, { groups: state.groups, pins: pins ?? [], labels: labels ?? {} });
    try {
      const fragment = memory.toFragment(made());
      history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
    } catch {
      // a page within another has no address of its own
    }
  }

  function restore() {
    const found = memory.ofFragment(location.hash) ?? memory.formed({ ...plainView(doc.graph.view), ...stored(`depass-sae:graph:${extra.key}`) });
    state.by = found.by;
    state.heads = found.heads;
    [state.nodeCount, state.edgeCount, state.path] = [found.nodes, found.edges, found.path];
    mend(found);
  }

  const plainView = (view) => (view && typeof view === "object" && !Array.isArray(view) ? view : {});

  /** Pins, groups and labels as they are given, where they make sense in this graph. */
  function mend({ pins, groups, labels }) {
    state.groups = groups ? cleaned(groups, all) : ownGroups;
    const known = new Set([...all.values()].map(labelKey));
    state.labels = new Map(labels.filter(([key]) => known.has(key)));
    state.pins = new Set(pins);
    state.picked.clear();
    rebuild();
    state.pins = new Set(pins.filter((id) => graph.nodes.has(id)));
    if (!graph.nodes.has(state.selected) && !all.has(state.selected)) state.selected = null;
  }

  const steps = memory.steps(made, (before) => {
    mend(before);
    save();
    mark();
    drawPanel();
  });

  function step(back) {
    say((back ? steps.back() : steps.forth()) ? (back ? "undone" : "done again") : `nothing to ${back ? "undo" : "do again"}`);
  }

  /** A feature's label wherever it stands, or a group's name. */
  function rename(id, text) {
    const node = graph.nodes.get(id) ?? all.get(id);
    const given = text.trim();
    if (given === node.label || (node.members && (!given || given === node.name))) return;
    steps.before();
    if (node.members) {
      state.groups = state.groups.map((group) => (group.nodes[0] === node.members[0] ? { ...group, name: given } : group));
    } else {
      const own = doc.nodes.find((other) => labelKey(other) === labelKey(node)).label;
      if (given === own) state.labels.delete(labelKey(node));
      else state.labels.set(labelKey(node), given);
    }
    say(`${node.name}: ${visible(given) || "no label"}`);
    rebuild();
    save();
    drawPanel();
  }

  /** Only what lies on ways through a node; through all again where it is the one already. */
  function throughOnly(id) {
    state.path = state.path === id ? null : id;
    say(state.path ? `only paths through ${graph.nodes.get(id).name}` : "all paths");
    refresh();
    save();
    drawPanel();
  }

  function select(id, travel = false) {
    state.selected = id;
    state.hovered = null;
    const there = shownAs(id);
    if (!view.ids.has(there)) refresh();
    mark();
    drawPanel();
    const covering = getComputedStyle(byId("panel")).position === "fixed"; // a sheet, which must not hide the node
    if ((travel || covering) && view.ids.has(there))
      nodeElement(there).scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function pin(id) {
    steps.before();
    if (!state.pins.delete(id)) state.pins.add(id);
    say(`${graph.nodes.get(id).name} ${state.pins.has(id) ? "pinned" : "unpinned"}`);
    save();
    mark();
    drawPanel();
  }

  function pick(id) {
    if (!state.picked.delete(id)) state.picked.add(id);
    say(`${many(state.picked.size, "node")} picked`);
    mark();
  }

  function toGroup() {
    const lists = [state.picked, state.pins].map((ids) => [...ids].filter((id) => graph.nodes.has(id)));
    return lists.find((ids) => ids.length > 1) ?? [];
  }

  function askForName() {
    if (toGroup().length < 2) return say("choose at least two nodes first: shift-click, or p to pin");
    byId("naming-count").textContent = `of ${many(toGroup().length, "node")}`;
    byId("group-name").value = "";
    return byId("naming").showModal();
  }

  function makeGroup(name) {
    const chosen = toGroup();
    const members = chosen.flatMap((id) => graph.nodes.get(id).members ?? [id]);
    const others = state.groups.filter((group) => !members.includes(group.nodes[0]));
    regroup([...others, { name, nodes: members }], chosen, `group:${members[0]}`);
    say(`group ${visible(name)} of ${many(members.length, "node")}`);
  }

  function ungroup(id) {
    const [first] = graph.nodes.get(id).members;
    regroup(state.groups.filter((group) => group.nodes[0] !== first), [id], null);
    say("ungrouped");
  }

  function regroup(groups, gone, selected) {
    steps.before();
    state.groups = groups;
    state.picked.clear();
    for (const id of gone) state.pins.delete(id);
    state.selected = selected;
    rebuild();
    save();
    drawPanel();
  }

  function clear() {
    state.selected = null;
    state.hovered = null;
    state.picked.clear();
    state.query = "";
    byId("search").value = "";
    byId("tooltip").hidden = true;
    mark();
    drawPanel();
  }

  function close() {
    const id = shownAs(state.selected);
    clear();
    if (view.ids.has(id)) goTo(id);
  }

  function neighbour(id, key) {
    if (key === "ArrowUp") return graph.outputs.get(id).find((edge) => view.ids.has(edge.target))?.target;
    if (key === "ArrowDown") return graph.inputs.get(id).find((edge) => view.ids.has(edge.source))?.source;
    const row = readingOrder().filter((node) => view.at.get(node.id).level === view.at.get(id).level);
    return row[row.findIndex((node) => node.id === id) + (key === "ArrowRight" ? 1 : -1)]?.id;
  }

  function goTo(id) {
    if (!id) return;
    nodeElement(state.current)?.setAttribute("tabindex", "-1");
    state.current = id;
    nodeElement(id).setAttribute("tabindex", "0");
    nodeElement(id).focus();
  }

  function nextFound() {
    const query = state.query.trim().toLowerCase();
    const found = [...graph.nodes.values()].filter((node) => query && matches(node, query));
    const at = found.findIndex((node) => node.id === state.selected);
    if (found.length) select(found[(at + 1) % found.length].id, true);
  }

  /** The graph with what was made of it here; depass-sae reads it, and makes a page that opens like this one. */
  function download() {
    const nodes = doc.nodes.map((node) => ({ ...node, label: all.get(node.id).label }));
    const { groups, labels, ...seen } = memory.plain(made()); // which stand in the graph itself
    const { view: _, ...own } = doc.graph;
    const about = { ...own, groups: state.groups, ...(Object.keys(seen).length ? { view: seen } : {}) };
    picture.download(new Blob([JSON.stringify({ ...doc, graph: about, nodes })], { type: "application/json" }), "graph.json");
  }

  function drawingAsSvg() {
    const hues = Object.fromEntries(["positive", "negative", "only-a", "only-b", "both"].map((name) => [name, colour(name)]));
    const lines = view.edges.map((edge) => {
      const { x1, y1, x2, y2, bend } = curve(edge);
      const shown = look(edge);
      const [n, points] = [(x) => x.toFixed(1), [x1, y1 - bend, x2, y2 + bend, x2, y2]];
      return svg("path", {
        ...{ fill: "none", stroke: hues[shown.hue], "stroke-width": shown.width.toFixed(2), opacity: shown.opacity.toFixed(3) },
        "stroke-dasharray": shown.dashes.map(n).join(" ") || null,
        d: `M${n(x1)} ${n(y1)}C${points.map(n).join(" ")}`,
      });
    });
    const edges = svg("g", {}, svg("g", { opacity: getComputedStyle(byId("edges")).opacity }, ...lines));
    for (const id of ["layers", "positions"]) byId(id).removeAttribute("transform");
    const parts = [byId("ground"), edges, byId("drawing")];
    const text = picture.svgOf({ width: view.width, height: view.height, ground: colour("paper"), parts });
    follow();
    return text;
  }

  async function downloadPicture(kind) {
    const text = drawingAsSvg();
    const blob = kind === "svg" ? new Blob([text], { type: "image/svg+xml" }) : await picture.pngOf(text, view);
    if (blob) picture.download(blob, `graph.${kind}`);
  }

  // ----------------------------------------------------------------------------------------------------------- events

  /** At most one call per frame. */
  function eachFrame(action) {
    let waiting = false;
    return () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        action();
      });
    };
  }

  const idAt = (event) => event.target.closest?.(".node")?.dataset.id;

  function hover(id, event) {
    if (over.moving()) id = null;
    if (id) showTooltip(graph.nodes.get(id), event);
    else byId("tooltip").hidden = true;
    if (id === state.hovered) return;
    state.hovered = id;
    mark();
  }

  function onDrawing() {
    const drawing = byId("drawing");
    drawing.addEventListener("pointermove", (event) => hover(idAt(event) ?? null, event));
    drawing.addEventListener("pointerleave", (event) => hover(null, event));
    // Focus, which may scroll, comes with the click: else what is under the pointer moves before it is let go.
    drawing.addEventListener("mousedown", (event) => idAt(event) && event.preventDefault());
    drawing.addEventListener("click", (event) => {
      const id = idAt(event);
      if (!id) return clear();
      goTo(id);
      return event.shiftKey ? pick(id) : select(id);
    });
    drawing.addEventListener("keydown", (event) => {
      const id = idAt(event);
      if (event.key === "Enter" || event.key === " ") (event.shiftKey ? pick : select)(id);
      else if (event.key.startsWith("Arrow")) goTo(neighbour(id, event.key));
      else return;
      event.preventDefault();
    });
  }

  function onKey(event) {
    if (byId("naming").open) return;
    const typing = event.target.matches("input:not([type=range], [type=radio], [type=checkbox])");
    if (event.key === "Escape") clear();
    if (!typing && (event.ctrlKey || event.metaKey) && ["z", "Z", "y"].includes(event.key)) {
      event.preventDefault();
      return step(event.key === "z" && !event.shiftKey);
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = idAt(event) ?? state.hovered ?? state.selected;
    const actions = {
      "/": () => byId("search").focus(),
      g: askForName,
      p: () => graph.nodes.has(here) && pin(here),
      t: () => graph.nodes.has(here) && throughOnly(here),
      0: fit,
      "+": () => zoomAt(scale() * 1.25),
      "-": () => zoomAt(scale() / 1.25),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  }

  function onControls() {
    const on = (id, type, action) => byId(id).addEventListener(type, action);
    const redraw = eachFrame(() => {
      refresh();
      save();
      drawPanel();
    });
    for (const radio of document.querySelectorAll("[name=by]")) {
      radio.addEventListener("change", () => {
        state.by = radio.value;
        sortEdges(graph, state.by);
        redraw();
      });
    }
    const setting = (id, type, name, of) =>
      on(id, type, (event) => {
        state[name] = of(event.target);
        redraw();
      });
    const count = (slider) => (slider.value === slider.max ? Infinity : Number(slider.value));
    setting("edge-slider", "input", "edgeCount", count);
    setting("node-slider", "input", "nodeCount", count);
    setting("heads", "change", "heads", (box) => box.checked);
    on("path-off", "click", () => throughOnly(state.path));
    on("search", "input", (event) => {
      state.query = event.target.value;
      mark();
    });
    on("search", "keydown", (event) => event.key === "Enter" && nextFound());
    on("group", "click", askForName);
    on("naming", "close", (event) => {
      const name = byId("group-name").value.trim();
      if (event.target.returnValue === "ok" && name) makeGroup(name);
      event.target.returnValue = "";
    });
    on("smaller", "click", () => zoomAt(scale() / 1.25));
    on("larger", "click", () => zoomAt(scale() * 1.25));
    on("fit", "click", fit);
    on("undo", "click", () => step(true));
    on("theme", "click", () => {
      theme.toggle();
      drawEdges();
    });
    // Another page of this reader's, or the one that this is shown in, has changed it.
    window.addEventListener("storage", (event) => {
      if (event.key !== theme.KEY) return;
      theme.restore();
      drawEdges();
    });
    on("download", "click", download);
    for (const kind of ["svg", "png"]) on(`download-${kind}`, "click", () => downloadPicture(kind));
    on("stage", "scroll", eachFrame(follow));
    for (const chip of document.querySelectorAll(".strip [data-node]")) {
      chip.addEventListener("click", () => all.has(chip.dataset.node) && select(chip.dataset.node, true));
    }
    document.addEventListener("keydown", onKey);
    theme.darkWanted.addEventListener("change", drawEdges);
    window.addEventListener("resize", eachFrame(refresh));
    window.addEventListener("hashchange", () => {
      restore();
      drawPanel();
    });
  }

  // ------------------------------------------------------------------------------------------------------------ start

  function start() {
    theme.restore();
    document.querySelector(".page").classList.add("drawn");
    if (window.parent !== window) document.documentElement.dataset.framed = ""; // the page around it names the graph
    byId("app").hidden = false;
    byId("no-script").hidden = true;
    byId("tables").open = false;
    byId("heads").parentElement.hidden = !doc.nodes.some((node) => node.kind === "head");
    drawLegend(); // which leaves the drawing the room that it has
    restore();
    drawPanel();
    onDrawing();
    onControls();
    const stage = byId("stage");
    const target = view.nodes.find((node) => node.target);
    if (target) stage.scrollLeft = view.at.get(target.id).x * scale() - stage.clientWidth * 0.85;
  }

  const over = makeMoving(byId("stage"), { scale, zoomAt, wheelZooms: () => window.parent === window });
  start();

  /** Every edge that is drawn: its ends, how wide and how strong. */
  const drawn = () => view.edges.map((edge) => [edge.source, edge.target, look(edge).width, look(edge).opacity]);
  return { drawn };
})();
