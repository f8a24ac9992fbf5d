// What is told of a node in words and numbers: the tooltip, and the panel beside the drawing. `page` is what viewer.js
// shares: the graph, what is drawn of it, the state, and what can be done (select, pin, ungroup).
const makePanel = (page) => {
  const { visible, plain, signed, sum, many, LOOKED, isFlow } = model;
  const { byId, el, button } = dom;
  const ROWS = 40; // of a table, before it is asked for more
  const AT_FIRST = 3; // contexts, before it is asked for more
  const pinnedDrawing = makePinned(page);
  const BY_LOOKING = "inputs by where heads looked";
  const PAIRS = "who looked for whom";

  function facts(node) {
    const rows = node.token == null ? [] : [["token", visible(node.token)]];
    for (const key of ["activation", "pre_activation", "constant", "probability", "influence", "reach"]) {
      const show = ["probability", "influence", "reach"].includes(key) ? plain : signed;
      for (const side of new Set(["", ...page.sides])) {
        const name = key.replace("_", "-") + side.replace("_", " ").toUpperCase();
        if (node[key + side] != null) rows.push([name, show(node[key + side])]);
      }
    }
    return el("dl", {}, ...rows.flatMap(([key, text]) => [el("dt", {}, key), el("dd", {}, el("bdi", {}, text))]));
  }

  // --------------------------------------------------------------------------------------------------------- contexts

  /** What the index says of a feature, wherever it stands; nothing where it says nothing. */
  function known(node) {
    const of = page.doc.graph.contexts?.features ?? {};
    const name = `${node.layer}${node.hook ? `.${node.hook}` : ""}/${node.index}`;
    return node.kind === "feature" && Object.hasOwn(of, name) ? of[name] : null;
  }

  /** A piece of text, each token shaded by its share of the feature's largest activation. */
  function context({ tokens, activations, pos }, most) {
    const spans = tokens.flatMap((token, i) => {
      const activation = activations[i] ?? 0;
      const side = activation < 0 ? " below" : activation > 0 ? " above" : "";
      const [, space, rest] = /^( ?)(.*)$/s.exec(token); // the space before a word is not shaded
      const text = el("bdi", {}, visible(rest || token));
      const span = el("span", { class: `piece${side}${i === pos ? " peak" : ""}`, title: side ? plain(activation) : null }, text);
      if (side) span.style.setProperty("--s", `${Math.round(55 * Math.min(1, Math.abs(activation) / most))}%`);
      return i && rest ? [space, span] : [span];
    });
    return el("li", {}, ...spans);
  }

  /** Its strongest contexts, from one to another. */
  function contexts(about, from, to) {
    const most = Math.abs(about.max) || 1;
    return about.contexts.slice(from, to).map((one) => context(one, most));
  }

  function contextsSection(node) {
    const about = known(node);
    if (!about) return [];
    const tokens = page.doc.graph.contexts.tokens;
    const said = `${about.count.toLocaleString("en")} of ${many(tokens, "token")}`;
    const heading = el("h3", {}, "where it fires most", el("span", {}, said));
    const list = el("ol", { class: "contexts" }, ...contexts(about, 0, AT_FIRST));
    const left = about.contexts.length - AT_FIRST;
    const more = left > 0 ? button(`${left} more`, () => more.remove(list.append(...contexts(about, AT_FIRST))), { class: "more" }) : null;
    return [heading, about.contexts.length ? list : null, more].filter(Boolean);
  }

  function showTooltip(node, event) {
    const tip = byId("tooltip");
    const label = node.label ? el("div", {}, el("bdi", {}, visible(node.label))) : null;
    const side = node.diff ? el("div", { class: "quiet" }, page.IN_DIFF[node.diff]) : null;
    const about = known(node);
    const list = about?.contexts.length ? el("ol", { class: "contexts" }, ...contexts(about, 0, AT_FIRST)) : null;
    tip.replaceChildren(...[el("b", {}, el("bdi", {}, node.name)), label, side, list, facts(node)].filter(Boolean));
    tip.classList.toggle("wide", list != null);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const right = event.clientX + 16;
    tip.style.left = `${Math.max(4, right + box.width > innerWidth ? event.clientX - box.width - 12 : right)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
  }

  function drawPanel() {
    const node = page.graph.nodes.get(page.state.selected) ?? page.all.get(page.state.selected);
    const parts = [
      node ? nodeSection(node) : introduction(),
      chosenSection("Pinned", "pins", [...page.state.pins], page.pin, "unpin", pinnedDrawing()),
    ];
    const groups = [...page.graph.nodes.values()].filter((n) => n.members).map((n) => n.id);
    parts.push(chosenSection("Groups", "groups", groups, page.ungroup, "ungroup"), node ? null : keysSection());
    const panel = byId("panel");
    panel.classList.toggle("open", node != null); // where it does not stand beside the drawing, it is a sheet over it
    panel.replaceChildren(...parts.filter(Boolean));
    panel.scrollTop = 0;
  }

  function introduction() {
    const weight =
      "A weight is what the source contributed: the weights and the constant add up to the pre-activation.";
    const effect =
      "An effect is, to first order, what the target would lose without the source; effects add up to nothing in particular.";
    const looked = page.doc.edges.some((edge) => LOOKED.some((way) => edge[way]))
      ? "A query or a key is what the source did to the target by where heads looked, which is in no sum."
      : "";
    const text = `Its inputs and outputs are listed here. ${weight} ${effect} ${looked}`.trim();
    return el("section", {}, el("h2", {}, "Select a node"), el("p", { class: "quiet" }, text));
  }

  function nodeSection(node) {
    const inputs = page.graph.inputs.get(node.id) ?? [];
    const outputs = page.graph.outputs.get(node.id) ?? [];
    const flows = (list) => list.filter((edge) => node.kind === "head" || isFlow(edge));
    const looked = (list) => list.filter((edge) => LOOKED.some((way) => edge[way]));
    const byHead = (list) => list.filter((edge) => node.kind !== "head" && edge.kind === "head");
    const close = button("×", page.close, { id: "close", "aria-label": "close the details", title: "Esc" });
    const kind = el("div", { class: "kind" }, where(node));
    const section = el("section", {}, close, kind, el("h2", {}, el("bdi", {}, node.name)));
    section.append(...labelLine(node));
    if (node.diff) section.append(el("p", { class: "quiet" }, page.IN_DIFF[node.diff]));
    section.append(facts(node), ...sums(node, flows(inputs)), buttons(node), ...contextsSection(node));
    if (node.members) section.append(el("h3", {}, "members"), chips(node.members));
    section.append(table("inputs", flows(inputs), "source"));
    if (byHead(inputs).length) section.append(table("inputs once more, by head", byHead(inputs), "source"));
    if (looked(inputs).length) section.append(table(BY_LOOKING, looked(inputs), "source", byLooking));
    section.append(...pairsTable(node));
    section.append(table("outputs", flows(outputs), "target"));
    if (byHead(outputs).length) section.append(table("outputs once more, by head", byHead(outputs), "target"));
    return section;
  }

  /** What a node means, which the reader may say better. */
  function labelLine(node) {
    if (!["feature", "direction", "group"].includes(node.kind)) {
      return node.label ? [el("p", { class: "label" }, el("bdi", {}, visible(node.label)))] : [];
    }
    const group = node.kind === "group";
    const input = el("input", { class: "label", maxlength: 300, placeholder: group ? "" : "add a label", "aria-label": group ? "name" : "label", autocomplete: "off", spellcheck: "false", dir: "auto" });
    input.value = visible(group ? node.name : node.label);
    input.addEventListener("change", () => page.rename(node.id, input.value));
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") input.blur();
      if (event.key !== "Escape") return;
      event.stopPropagation();
      input.value = visible(group ? node.name : node.label);
      input.blur();
    });
    return [input];
  }

  function where(node) {
    const group = node.members ? null : page.state.groups.find((g) => g.nodes.includes(node.id));
    const parts = [node.kind, page.layerName(node)];
    if (node.pos != null) parts.push(`position ${node.pos}`);
    if (group) parts.push(`in group ${visible(group.name)}`);
    return parts.join(", ");
  }

  /**
   * Σ inputs + constant = pre-activation, with the numbers; once for each of two compared graphs, where it is known: what
   * stands in both has the first one's constant and pre-activation.
   */
  function sums(node, inputs) {
    return page.sides.flatMap((side) => {
      if (side && node.members) return [];
      const whole =
        node["pre_activation" + side] ?? (side === "_b" && node.diff === "both" ? null : node.pre_activation);
      const weights = inputs.map((edge) => edge["weight" + side]).filter((weight) => weight != null);
      if (whole == null || !weights.length) return [];
      const terms = [
        ["Σ inputs", sum(weights, (weight) => weight)],
        ["+ constant", node["constant" + side] ?? node.constant ?? 0],
      ];
      if (node.inner) terms.push(["+ within the group", node.inner]);
      const off = Math.abs(sum(terms, ([, number]) => number) - whole) > 1e-3 * Math.max(1, sum(weights, Math.abs));
      const written = [...terms, [`${off ? "≠" : "="} pre-activation`, whole]];
      const spans = written.flatMap(([text, number]) => [" ", el("span", {}, `${text} `, el("b", {}, signed(number)))]);
      return [el("p", { class: "sum" }, side ? `${side.slice(1).toUpperCase()}:` : null, ...spans)];
    });
  }

  function buttons(node) {
    const line = el("p", { class: "actions" });
    if (page.graph.nodes.has(node.id))
      line.append(button(page.state.pins.has(node.id) ? "unpin" : "pin", () => page.pin(node.id)));
    if (page.graph.nodes.has(node.id)) {
      const on = page.state.path === node.id;
      line.append(button("only paths through it", () => page.throughOnly(node.id), { "aria-pressed": String(on), title: "draw only what lies on ways through this node (t)" }));
    }
    if (node.members) line.append(button("ungroup", () => page.ungroup(node.id)));
    const sae = (page.doc.graph.saes ?? []).find(
      (s) => s.layer === node.layer && (!node.hook || s.hook === node.hook) && s.neuronpedia_id,
    );
    if (node.kind === "feature" && sae) {
      const parts = [...sae.neuronpedia_id.split("/"), node.index].map((part) => encodeURIComponent(visible(part)));
      const href = `https://www.neuronpedia.org/${parts.join("/")}`;
      line.append(el("a", { href, target: "_blank", rel: "noopener noreferrer" }, "Neuronpedia ↗"));
    }
    const cards = page.doc.graph.contexts?.cards ?? "";
    if (known(node) && /^https?:\/\//.test(cards)) {
      const href = `${cards}/feature/${node.layer}${node.hook ? `.${node.hook}` : ""}/${node.index}`;
      line.append(el("a", { href, target: "_blank", rel: "noopener noreferrer" }, "card ↗"));
    }
    return line;
  }

  /** What sorts and draws the list of what was done by where heads looked. */
  const byLooking = {
    columns: LOOKED,
    value: (edge) => LOOKED.map((way) => edge[way] ?? 0).reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a)),
  };

  function table(title, edges, end, looking) {
    const heading = el("h3", {}, title, el("span", {}, edges.length ? String(edges.length) : "none"));
    if (!edges.length) return heading;
    const value = looking?.value ?? page.value;
    const size = (edge) => Math.abs(value(edge));
    const sorted = [...edges].sort((a, b) => size(b) - size(a));
    const by = page.state.by;
    const columns = looking?.columns ?? (page.diff ? page.sides.map((side) => by + side) : ["weight", "effect"]);
    const head = columns.map((key) => {
      const text = key === by ? `${key} ↓` : key.replace("_a", " in A").replace("_b", " in B");
      return el("th", { scope: "col", class: "n", "aria-sort": key === by ? "descending" : null }, text);
    });
    const body = el("tbody");
    const show = (from, to) =>
      body.append(...sorted.slice(from, to).map((edge) => row(edge, end, columns, value, size(sorted[0]) || 1)));
    show(0, ROWS);
    const more = button(`${sorted.length - ROWS} more`, () => more.remove(show(ROWS)), { class: "more" });
    const header = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, end), ...head));
    const rows = el("table", { class: "flows", "data-list": title }, header, body);
    return el("div", {}, heading, rows, sorted.length > ROWS ? more : null);
  }

  /** Which two nodes together decided where the heads looked that this one reads through, where the graph was asked. */
  function pairsTable(node) {
    const pairs = (page.doc.graph.pairs ?? []).filter((pair) => pair.node === node.id && page.all.has(pair.query) && page.all.has(pair.key));
    if (!pairs.length) return [];
    const rows = pairs.map((pair) => el("tr", {}, el("td", {}, goButton(pair.query)), el("td", {}, goButton(pair.key)), el("td", { class: "n" }, signed(pair.value))));
    const names = ["as part of a query", "as part of a key"].map((text) => el("th", { scope: "col" }, text));
    const head = el("thead", {}, el("tr", {}, ...names, el("th", { scope: "col", class: "n" }, "together")));
    return [el("h3", {}, PAIRS, el("span", {}, String(pairs.length))), el("table", { class: "flows pairs", "data-list": PAIRS }, head, el("tbody", {}, ...rows))];
  }

  function row(edge, end, columns, value, most) {
    const cells = columns.map((key) => el("td", { class: "n" }, signed(edge[key])));
    const bar = el("span", { class: `bar ${value(edge) < 0 ? "negative" : "positive"}` });
    bar.style.width = `${(100 * Math.abs(value(edge))) / most}%`;
    const shown = columns.findIndex((key) => edge[key] === value(edge));
    if (!page.diff) cells[Math.max(shown, 0)].append(bar);
    const side = { only_a: "A", only_b: "B" }[edge.diff];
    const letter = side ? el("span", { class: `side ${edge.diff}`, title: page.IN_DIFF[edge.diff] }, side) : null;
    const title = page.view.drawn.has(edge) ? null : "below the thresholds: drawn only while its node is selected";
    const go = () => page.select(edge[end], true);
    return el("tr", { class: title ? "off" : "", "data-go": edge[end], title, onclick: go }, el("td", {}, letter, goButton(edge[end])), ...cells);
  }

  function goButton(id) {
    const node = page.graph.nodes.get(id) ?? page.all.get(id);
    const go = (event) => {
      event.stopPropagation();
      page.select(id, true);
    };
    const text = node.label ? `${node.name}  ${visible(node.label)}` : node.name;
    return button(el("bdi", {}, text), go, { class: "link", title: text });
  }

  function chips(ids, undo, verb) {
    const name = (id) => page.graph.nodes.get(id)?.name;
    const cross = (id) => (undo ? button("×", () => undo(id), { "aria-label": `${verb} ${name(id)}` }) : null);
    return el("ul", { class: "chips" }, ...ids.map((id) => el("li", {}, goButton(id), cross(id))));
  }

  function chosenSection(title, id, ids, undo, verb, drawing = null) {
    return ids.length ? el("section", { id }, el("h2", {}, title), drawing, chips(ids, undo, verb)) : null;
  }

  function keysSection() {
    const keys = [
      ["Tab", "to the drawing"],
      ["↑ ↓", "strongest output, strongest input"],
      ["← →", "along the layer"],
      ["Enter", "open"],
      ["p", "pin"],
      ["t", "only paths through it"],
      ["drag, wheel", "move, zoom"],
      ["+ − 0", "zoom in, out, fit"],
      ["ctrl-z", "undo pins, groups, labels"],
      ["shift-click", "pick several (shift-Enter, too)"],
      ["g", "group what is picked or pinned"],
      ["/", "search; Enter goes to the next"],
      ["Esc", "clear"],
    ];
    const list = keys.flatMap(([key, text]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)]);
    return el("section", {}, el("h2", {}, "Keys"), el("dl", { class: "keys" }, ...list));
  }

  return { drawPanel, showTooltip };
};
