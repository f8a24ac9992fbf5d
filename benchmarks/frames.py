"""How long a frame takes while the fullest page of a graph is moved, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator

COUNT, ROUNDS, GOAL = 150, 4, 50


def frames(threads: int) -> Iterator[str]:
    """What is printed, line by line, as it is known. The best of several rounds: others may be busy on the machine."""
    from depass_sae.demo.browser import browser, opened
    from depass_sae.graph.export.html import to_html
    from tests.graph.export.frames import FRAMES, fullest

    g = fullest()
    yield f"{len(g):,} nodes, {g.number_of_edges():,} edges, {COUNT} frames, best of {ROUNDS} rounds"
    page = to_html(g)
    with browser() as chromium, opened(chromium, page, (1200, 800)) as window:
        window.goto(f"{window.url}#nodes=all&edges=all")
        window.reload()
        window.wait_for_selector("#nodes .node")
        for _ in range(3):
            window.locator("#larger").click()
        window.wait_for_timeout(1000)
        for kind in ("drag", "wheel"):
            rounds = [sorted(window.evaluate(FRAMES, [kind, COUNT])["times"]) for _ in range(ROUNDS)]
            times = min(rounds, key=lambda times: times[int(0.95 * COUNT)])
            yield (
                f"{kind:6} median {times[COUNT // 2]:5.1f} ms, 95th percentile {times[int(0.95 * COUNT)]:5.1f} ms "
                f"(goal {GOAL})"
            )
