"""The fullest page that there is, and moving about in it."""

from __future__ import annotations

import networkx as nx

from depass_sae.graph.export.html import MAX_EDGES, MAX_NODES
from depass_sae.graph.limits import limited
from tests.graph.sample import sample_graph

FRAMES = """async ([kind, count]) => {
    const stage = document.querySelector("#stage");
    const { left, top } = stage.getBoundingClientRect();
    const [x, y] = [left + 500, top + 250];
    stage.setPointerCapture = () => {}; // there is no such pointer
    const point = (type, x, y) => stage.dispatchEvent(new PointerEvent(type,
        { bubbles: true, buttons: 1, clientX: x, clientY: y, pointerId: 1, pointerType: "mouse" }));
    const turn = (i) => stage.dispatchEvent(new WheelEvent("wheel",
        { bubbles: true, cancelable: true, deltaY: i % 40 < 20 ? -60 : 60, clientX: x, clientY: y }));
    const times = [];
    if (kind === "drag") point("pointerdown", x, y);
    let last = await new Promise(requestAnimationFrame);
    const from = stage.scrollLeft;
    let moved = 0;
    for (let i = 0; i < count; i++) {
        if (kind === "drag") point("pointermove", x - 300 * Math.sin(i / 12), y - 200 * Math.sin(i / 9)); else turn(i);
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
        moved = Math.max(moved, Math.abs(stage.scrollLeft - from));
    }
    if (kind === "drag") point("pointerup", x, y);
    return { times, moved };
}"""
"""How long each of so many frames takes, and how far it went. kind: drag or wheel."""


def fullest() -> nx.DiGraph:
    """As many nodes and edges as a page holds."""
    return limited(sample_graph(layers=(5, 11, 17), n_pos=12, per_level=330), MAX_NODES, MAX_EDGES)
