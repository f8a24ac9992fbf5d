// The drawing as it is seen, as a file: SVG with everything that the style sheet says written on the elements, and PNG.
const picture = (() => {
  const SAID = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "opacity", "paint-order", "font-family", "font-size", "font-weight", "text-anchor", "dominant-baseline"];
  const LARGEST = 8192; // pixels that a picture may be wide or high

  /** A copy of an element that needs no style sheet. */
  function plainCopy(element) {
    if (element.nodeType === Node.TEXT_NODE) return document.createTextNode(element.data);
    const style = getComputedStyle(element);
    if (style.display === "none" || element.matches(".hit")) return null;
    const copy = document.createElementNS(dom.SVG, element.tagName);
    for (const { name, value } of element.attributes) {
      if (!/^(class|id|role|tabindex|style|aria-|data-)/.test(name)) copy.setAttribute(name, value);
    }
    const ofText = ["text", "tspan"].includes(element.tagName);
    for (const name of element.tagName === "g" ? ["opacity"] : SAID) {
      if (/^(font|text|dominant)/.test(name) && !ofText) continue;
      const value = style.getPropertyValue(name);
      if (value && !["normal", "auto"].includes(value)) copy.setAttribute(name, value);
    }
    copy.append(...[...element.childNodes].map(plainCopy).filter(Boolean));
    return copy;
  }

  /** parts: elements from back to front; ground: the colour behind them. */
  function svgOf({ width, height, ground, parts }) {
    const whole = dom.svg("svg", { xmlns: dom.SVG, viewBox: `0 0 ${width} ${height}`, width, height });
    whole.append(dom.svg("rect", { width, height, fill: ground }));
    for (const part of parts) whole.append(...[...part.childNodes].map(plainCopy).filter(Boolean));
    return new XMLSerializer().serializeToString(whole);
  }

  async function pngOf(text, { width, height }) {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const ratio = Math.min(2, LARGEST / width, LARGEST / height);
    const canvas = dom.el("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  function download(blob, name) {
    const href = URL.createObjectURL(blob);
    dom.el("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  }

  return { svgOf, pngOf, download };
})();
