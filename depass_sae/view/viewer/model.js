"use strict";

// What the page knows of a graph, apart from any drawing: text, groups, ranks, layout. Pure functions, but that `rank`
// and `layout` write their findings on the nodes and edges they are given.
const model = (() => {
  // ------------------------------------------------------------------------------------------------------------- text

  /** Control and direction marks made visible, line breaks as arrows: one line of harmless text. */
  function visible(text) {
    const marks = { "\n": "↵", "\t": "⇥", "\r": "␍" };
    return String(text ?? "").replace(/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb]/gu, (c) => marks[c] ?? "\ufffd");
  }

  /** A number as everywhere else (view/words.py). */
  function plain(x) {
    if (typeof x !== "number") return "–";
    const size = Math.abs(x);
    const power = size >= 1e5 || (size > 0 && size < 5e-4);
    const text = power ? x.toExponential(1).replace(/(\d+)$/, (e) => e.padStart(2, "0")) : (x + 0).toFixed(3);
    return text.replaceAll("-", "−");
  }

  const signed = (x) => (typeof x === "number" && !(x < 0) ? "+" : "") + plain(x);
  const cut = (text, length) => (text.length > length ? [...text].slice(0, length - 1).join("") + "…" : text);
  const many = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  const sum = (list, of) => list.reduce((total, x) => total + (of(x) ?? 0), 0);
  const largest = (list, of) => list.reduce((most, x) => Math.max(most, of(x)), 0);

  // ----------------------------------------------------------------------------------------------------------- groups

  /** Groups that make sense in this graph: known nodes only, each in one group, none empty. */
  function cleaned(groups, nodes) {
    const taken = new Set();
    const fresh = (id) => nodes.has(id) && !taken.has(id) && taken.add(id);
    return (Array.isArray(groups) ? groups : [])
      .map((group) => ({ ...group, name: String(group.name ?? ""), nodes: (group.nodes ?? []).filter(fresh) }))
      .filter((group) => group.nodes.length);
  }

  function groupNode(group, nodes) {
    const members = group.nodes.map((id) => nodes.get(id));
    const first = members.reduce((best, node) => (node.influence > best.influence ? node : best));
    const node = {
      id: `group:${group.nodes[0]}`,
      kind: "group",
      name: visible(group.name),
      members: group.nodes,
      layer: first.layer,
      hook: first.hook,
      pos: first.pos,
      label: "",
      influence: sum(members, (m) => m.influence),
      inner: 0,
      target: members.some((m) => m.target),
    };
    if (members.every((m) => typeof m.pre_activation === "number")) {
      node.pre_activation = sum(members, (m) => m.pre_activation);
      node.constant = sum(members, (m) => m.constant);
    }
    if (first.diff) node.diff = members.every((m) => m.diff === first.diff) ? first.diff : "both";
    return node;
  }

  /** Edges that are no part of what sums: the same flow by head, and what is done by where heads looked. */
  const LOOKED = ["query", "key"];
  const isFlow = (edge) => edge.kind === "flow" || edge.kind === "remainder";

  /** The graph with each group as one node. Its edges are the sums of its members'; those within it are `inner`. */
  function contract(all, links, groups) {
    const made = groups.map((group) => groupNode(group, all));
    const owner = new Map(made.flatMap((node) => node.members.map((id) => [id, node])));
    const nodes = new Map();
    for (const node of all.values()) {
      const stands = owner.get(node.id) ?? node;
      nodes.set(stands.id, stands);
    }
    const edges = new Map();
    for (const link of links) {
      const source = owner.get(link.source)?.id ?? link.source;
      const target = owner.get(link.target)?.id ?? link.target;
      if (source === target) {
        if (isFlow(link)) nodes.get(target).inner += link.weight;
        continue;
      }
      const key = JSON.stringify([source, target, link.kind === "head"]);
      edges.set(key, edges.has(key) ? together(edges.get(key), link) : { ...link, source, target });
    }
    const [inputs, outputs] = [new Map(), new Map()];
    for (const id of nodes.keys()) {
      inputs.set(id, []);
      outputs.set(id, []);
    }
    for (const edge of edges.values()) {
      inputs.get(edge.target).push(edge);
      outputs.get(edge.source).push(edge);
    }
    return { nodes, edges: [...edges.values()], inputs, outputs };
  }

  function together(edge, link) {
    for (const key of ["weight", "effect", "query", "key", "weight_a", "weight_b", "effect_a", "effect_b", "magnitude", "through_weight", "through_effect"]) {
      if (link[key] != null) edge[key] = (edge[key] ?? 0) + link[key];
    }
    if (edge.kind === "remainder" || (!isFlow(edge) && link.kind === "flow")) edge.kind = link.kind;
    if (edge.diff !== link.diff) edge.diff = "both";
    return edge;
  }

  // ---------------------------------------------------------------------------------------------------------- filters

  /** The number that draws and sorts an edge, a query's or key's its own. Of two compared graphs, the larger of theirs. */
  function valueOf(edge, by) {
    if (LOOKED.includes(edge.kind)) return edge[edge.kind] ?? 0;
    const [a, b] = [edge[`${by}_a`], edge[`${by}_b`]];
    if (a == null || b == null) return a ?? b ?? edge[by] ?? 0;
    return Math.abs(b) > Math.abs(a) ? b : a;
  }

  /** What of the target comes through an edge: how wide and strong it is drawn, and whether it is at all. */
  const through = (edge, by) => edge[`through_${by}`] ?? 0;

  /** Sorts every node's edges, the largest number first. */
  function sortEdges(graph, by) {
    const size = (edge) => Math.abs(valueOf(edge, by));
    for (const list of [...graph.inputs.values(), ...graph.outputs.values()]) list.sort((a, b) => size(b) - size(a));
  }

  /** How much a node counts; a head, a second view of the same flow, by what it carries. */
  function importance(graph, node) {
    if (node.kind === "head") return sum(graph.outputs.get(node.id), (edge) => through(edge, "weight"));
    return Math.max(node.influence, node.reach ?? 0);
  }

  /** The nodes from which a node is reached, and those reached from it, itself in both. */
  function reaching(graph, id) {
    const walk = (edgesOf, end) => {
      const seen = new Set([id]);
      for (const at of seen) for (const edge of edgesOf.get(at) ?? []) seen.add(edge[end]);
      return seen;
    };
    return { below: walk(graph.inputs, "source"), above: walk(graph.outputs, "target") };
  }

  /**
   * What is drawn: the targets and, of the others, so many that count most, with what `always` names; among them, so
   * many of the edges through which most of the target comes. path: a node that all ways must lead through.
   * edgeCount: null for the fewest that together carry most of what all do.
   */
  function within(graph, { by, nodeCount, edgeCount, heads, always, path }) {
    const way = path == null ? null : reaching(graph, path);
    const onWay = (edge) => !way || way.below.has(edge.target) || way.above.has(edge.source);
    const possible = [...graph.nodes.values()].filter(
      (node) => (heads || node.kind !== "head") && (!way || way.below.has(node.id) || way.above.has(node.id)),
    );
    const counts = new Map(possible.map((node) => [node, importance(graph, node)]));
    const order = [...possible].sort((a, b) => (b.target ?? 0) - (a.target ?? 0) || counts.get(b) - counts.get(a));
    const nodes = order.filter((node, i) => i < nodeCount || node.target || always(node));
    const ids = new Set(nodes.map((node) => node.id));
    const among = graph.edges.filter((edge) => ids.has(edge.source) && ids.has(edge.target) && onWay(edge));
    among.sort((a, b) => through(b, by) - through(a, by));
    const edges = among.slice(0, edgeCount ?? enough(among, by));
    return { nodes, ids, edges, of: { nodes: possible.length, edges: among.length } };
  }

  const ENOUGH = 0.95; // of what all edges carry
  const MOST = 800;

  /** How many of the edges, the strongest first, say nearly all and leave no node alone that has one. */
  function enough(edges, by) {
    const whole = sum(edges, (edge) => through(edge, by));
    const alone = new Set(edges.flatMap((edge) => [edge.source, edge.target]));
    let [count, carried] = [0, 0];
    while (count < Math.min(edges.length, MOST) && (alone.size || carried < ENOUGH * whole)) {
      const edge = edges[count++];
      carried += through(edge, by);
      alone.delete(edge.source);
      alone.delete(edge.target);
    }
    return count;
  }

  // ----------------------------------------------------------------------------------------------------------- layout

  const GUTTER = 92; // where the layers' names are
  const FOOT = 40; // where the tokens are
  const LEAST = 720; // wide, whatever the window
  const COLUMNS = 12; // of longer prompts, what stands between is left out
  const SMALLEST = 0.7; // a drawing is not made smaller than this by itself
  const LETTER = 6; // the width of a caption's
  const SHAPES = [
    ...[1.2, 0.5, 0.15].map((ratio) => ({ x: 112, y: 44, ratio, captions: true, gap: 72, r: [6, 8], most: 1 })),
    ...[1.2, 0.5, 0.15].map((ratio) => ({ x: 66, y: 41, ratio, captions: true, gap: 64, r: [5, 7], most: 1.15 })),
    ...[1.2, 0.5, 0.2].map((ratio) => ({ x: 36, y: 32, ratio, captions: false, gap: 84, r: [4.5, 7], most: 1.15 })),
    ...[1.7, 0.8, 0.4, 0.2].map((ratio) => ({ x: 21, y: 21, ratio, captions: false, gap: 96, r: [3.5, 5.5], most: 1.15 })),
  ];

  const HOOKS = ["resid_pre", "hook_z", "attn_out", "resid_mid", "ln2_normalized", "mlp_in", "mlp_out", "resid_post"];

  /** Where a node stands: its layer, and of several dictionaries in that layer the hook of its own. */
  const levelOf = (node) => (node.hook ? `${node.layer}.${node.hook}` : String(node.layer));

  /** The rows, from the top. */
  function levelsOf(nodes) {
    const levels = new Map(nodes.filter((n) => n.kind !== "head").map((n) => [levelOf(n), n]));
    return [...levels]
      .map(([level, { layer, hook }]) => ({ level, layer, hook }))
      .sort((a, b) => b.layer - a.layer || HOOKS.indexOf(b.hook) - HOOKS.indexOf(a.hook));
  }

  /**
   * Where everything is: columns are positions (the first is for what has none), rows are levels, and the nodes of one
   * cell are packed in a grid. Of the shapes above, the first that goes well into the room is taken.
   */
  function layout(nodes, tokens, area) {
    const room = { width: Math.max(area.width, LEAST), height: area.height };
    const excess = (plan) => Math.max(plan.width / room.width, plan.height / room.height);
    const plans = [];
    for (const shape of SHAPES) {
      plans.push(arrange(nodes, tokens, shape));
      if (excess(plans.at(-1)) <= shape.most) break;
    }
    const plan = plans.reduce((best, other) => (excess(other) < excess(best) ? other : best));
    const zoom = Math.min(1, Math.max(SMALLEST, 1 / excess(plan)));
    spread(plan, { width: room.width / zoom, height: room.height / zoom });
    return { ...plan, zoom, at: placed(plan, nodes) };
  }

  function cellsOf(nodes, levels, shape) {
    const below = (n) => (levels.find((l) => l.layer < n.layer) ?? levels.at(-1)).level;
    const rowOf = (n) => (n.kind === "head" ? below(n) : levelOf(n));
    const cells = new Map();
    for (const node of nodes) {
      const [column, level] = [node.pos ?? -1, rowOf(node)];
      const key = `${column}|${level}`;
      if (!cells.has(key)) cells.set(key, { column, level, nodes: [] });
      cells.get(key).nodes.push(node);
    }
    for (const cell of cells.values()) {
      cell.nodes.sort((a, b) => b.influence - a.influence || (a.id < b.id ? -1 : 1));
      cell.step = cell.column < 0 ? { x: 62, y: 42 } : shape;
      const widths = cell.nodes.map((node) => widthOf(node, cell.step));
      const area = sum(widths, (width) => width) / cell.step.x;
      const across = cell.column < 0 ? cell.nodes.length / 3 : Math.sqrt(area * shape.ratio);
      cell.lines = lined(cell.nodes, widths, Math.max(1, Math.ceil(across)) * cell.step.x);
      cell.width = largest(cell.lines, (line) => line.width);
      cell.height = sum(cell.lines, (line) => line.height(cell.step));
    }
    return [...cells.values()];
  }

  const BOX = { x: 104, y: 40 };
  const widthOf = (node, step) => (boxed(node) ? Math.max(BOX.x, step.x) : step.x);

  /** Nodes in lines that are at most so wide; only what is a box takes a box's room. */
  function lined(nodes, widths, most) {
    const lines = [];
    nodes.forEach((node, i) => {
      if (!lines.length || lines.at(-1).width + widths[i] > most) {
        const height = (step) => (line.nodes.some(boxed) ? Math.max(BOX.y, step.y) : step.y);
        const line = { nodes: [], width: 0, height };
        lines.push(line);
      }
      lines.at(-1).nodes.push(node);
      lines.at(-1).width += widths[i];
    });
    return lines;
  }

  /** The positions that are drawn: all of a short prompt; of a longer one those at which something stands, with gaps. */
  function positionsOf(cells, tokens) {
    const last = largest(cells, (c) => c.column);
    const there = new Set(cells.map((c) => c.column));
    const every = [...tokens.slice(0, last + 1).keys()];
    if (every.length <= COLUMNS) return every.map((pos) => ({ pos }));
    const shown = every.map((pos) => ({ pos, gap: !there.has(pos) }));
    return shown.filter((column, i) => !column.gap || !shown[i - 1]?.gap);
  }

  function arrange(nodes, tokens, shape) {
    const levels = levelsOf(nodes);
    const cells = cellsOf(nodes, levels, shape);
    const columns = [{ pos: -1 }, ...positionsOf(cells, tokens)].map(({ pos, gap }) => {
      const there = cells.filter((c) => c.column === pos);
      const content = largest(there, (c) => c.width);
      if (pos < 0) return { pos, label: "", content, width: content && content + 10 };
      if (gap) return { pos, gap, label: "…", content: 0, width: 22 };
      const label = cut(visible(tokens[pos]).trim() || "␣", there.length ? 12 : 4);
      return { pos, label, content, width: Math.max(content && content + 10, 16, label.length * 7.4 + 10) };
    });
    const rows = levels.map((row) => {
      const content = largest(cells.filter((c) => c.level === row.level), (c) => c.height);
      return { ...row, height: content + 14 };
    });
    const width = GUTTER + sum(columns, (c) => c.width) + 8;
    const height = sum(rows, (r) => r.height) + shape.gap * Math.max(0, rows.length - 1) + FOOT + 16;
    return { shape, cells, columns, rows, width, height, gap: shape.gap };
  }

  /** Room that is left over goes to the columns and to the gaps between levels. */
  function spread(plan, room) {
    const positions = plan.columns.filter((column) => column.pos >= 0 && column.content);
    const wider = Math.min(140, Math.max(0, room.width - plan.width) / Math.max(1, positions.length));
    for (const column of positions) column.width += wider;
    const gaps = Math.max(1, plan.rows.length - 1);
    const higher = Math.min(240 - plan.gap, Math.max(0, room.height - plan.height) / gaps);
    plan.gap += higher;
    plan.width += wider * positions.length;
    plan.height += higher * (plan.rows.length - 1);
    let [x, y] = [GUTTER, 10];
    for (const column of plan.columns) {
      column.x = x;
      x += column.width;
    }
    for (const row of plan.rows) {
      row.y = y;
      y += row.height + plan.gap;
    }
  }

  function placed({ cells, columns, rows, shape }, nodes) {
    const top = largest(nodes.filter((node) => !node.target), (node) => node.influence) || 1;
    const at = new Map();
    for (const cell of cells) {
      const column = columns.find((c) => c.pos === cell.column);
      const row = rows.find((r) => r.level === cell.level);
      let y = row.y + (row.height - cell.height) / 2;
      for (const line of cell.lines) {
        let x = column.x + (column.width - line.width) / 2;
        const height = line.height(cell.step);
        for (const node of line.nodes) {
          const width = widthOf(node, cell.step);
          const lifted = captioned(node, shape) ? 5 : 0;
          at.set(node.id, { x: x + width / 2, y: y + height / 2 - lifted, r: radius(node, top, shape), level: cell.level });
          x += width;
        }
        y += height;
      }
    }
    return at;
  }

  const shared = ["constant", "bias", "remainder", "head"];
  const captioned = (node, shape) => !boxed(node) && (shape.captions || node.target || shared.includes(node.kind));
  const letters = (node, shape) => Math.floor((shared.includes(node.kind) ? 62 : shape.x) / LETTER) - 1;

  /** Whether a node is a box with its name in it; `kind` or the node. */
  const boxed = (node) => ["logit", "direction", "group"].includes(node.kind ?? node);

  function radius(node, top, shape) {
    if (boxed(node)) return 13;
    return shape.r[0] + shape.r[1] * Math.sqrt(Math.min(1, node.influence / top));
  }

  /** A node's outline around (0, 0), as an SVG path. */
  function outline(kind, r) {
    if (boxed(kind)) {
      return `M-42 ${-r}H42a6 6 0 0 1 6 6V${r - 6}a6 6 0 0 1-6 6H-42a6 6 0 0 1-6-6V${6 - r}a6 6 0 0 1 6-6Z`;
    }
    const polygons = {
      token: "-.9 -.9 .9 -.9 .9 .9 -.9 .9",
      error: "0 -1.2 1.2 0 0 1.2 -1.2 0",
      constant: "0 -1.15 1.1 .85 -1.1 .85",
      bias: "0 1.15 1.1 -.85 -1.1 -.85",
      head: "-1.2 0 -.6 -1 .6 -1 1.2 0 .6 1 -.6 1",
    };
    const points = polygons[kind]?.split(" ").map((x) => (x * r).toFixed(2));
    if (points) return `M${points.join(" ")}Z`;
    return `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
  }

  return {
    ...{ visible, plain, signed, cut, many, sum, cleaned, contract, LOOKED, isFlow, valueOf, through, sortEdges, within },
    ...{ largest, reaching, layout, levelOf, levelsOf, captioned, letters, boxed, outline, FOOT },
  };
})();
