// Moving over the drawing: dragging, the wheel, two fingers. The stage scrolls; `zoomAt(zoom, x, y)` makes the drawing
// larger or smaller and keeps what is at that place of the window where it is.
function makeMoving(stage, { scale, zoomAt, wheelZooms }) {
  const NEAR = 4; // pixels that a click may be off
  let drag = null;
  let pinch = null;

  const onScrollbar = (event) => event.target === stage && (event.offsetX >= stage.clientWidth || event.offsetY >= stage.clientHeight);

  function start(event) {
    // Fingers scroll by themselves.
    if (event.button !== 0 || event.pointerType === "touch" || onScrollbar(event)) return;
    drag = { x: event.clientX, y: event.clientY, left: stage.scrollLeft, top: stage.scrollTop, moved: false };
  }

  function move(event) {
    if (!drag || event.pointerType === "touch") return;
    if (event.buttons === 0) return stop(); // let go outside the window
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(x, y) <= NEAR) return;
    if (!drag.moved) stage.setPointerCapture(event.pointerId);
    drag.moved = true;
    stage.classList.add("dragged");
    stage.scrollTo(drag.left - x, drag.top - y);
  }

  function stop() {
    stage.classList.remove("dragged");
    drag = null;
  }

  /** The click that ends a drag is none, in browsers that make one of it. */
  function end() {
    if (!drag) return;
    const { moved } = drag;
    stop();
    if (!moved) return;
    const swallow = (event) => event.stopPropagation();
    window.addEventListener("click", swallow, { capture: true, once: true });
    setTimeout(() => window.removeEventListener("click", swallow, { capture: true }));
  }

  function wheel(event) {
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) return; // sideways
    if (!event.ctrlKey && !wheelZooms()) return;
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode ? 16 : 1);
    const factor = Math.exp(-pixels * (event.ctrlKey && Math.abs(pixels) < 50 ? 0.01 : 0.0016)); // a pinch has small ones
    zoomAt(scale() * Math.min(1.6, Math.max(0.625, factor)), event.clientX, event.clientY);
  }

  const apart = ([a, b]) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;

  function touched(event) {
    pinch = event.touches.length === 2 ? { apart: apart(event.touches), zoom: scale() } : null;
  }

  function pinched(event) {
    if (!pinch || event.touches.length !== 2) return;
    event.preventDefault();
    const [a, b] = event.touches;
    zoomAt((pinch.zoom * apart([a, b])) / pinch.apart, (a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2);
  }

  stage.addEventListener("pointerdown", start);
  stage.addEventListener("pointermove", move);
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", stop);
  stage.addEventListener("wheel", wheel, { passive: false });
  stage.addEventListener("touchstart", touched, { passive: true });
  stage.addEventListener("touchend", touched, { passive: true });
  stage.addEventListener("touchmove", pinched, { passive: false });
  return { moving: () => drag?.moved ?? false };
}
