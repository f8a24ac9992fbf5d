// Making elements. Text only ever becomes a text node.
const dom = (() => {
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  /** An element; strings among the children become text nodes, never HTML. */
  function el(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }

  function fill(element, attributes, children) {
    for (const [key, given] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), given);
      else if (given != null) element.setAttribute(key, given);
    }
    element.append(...children.filter((child) => child != null));
    return element;
  }

  const button = (text, onclick, attributes = {}) => el("button", { type: "button", onclick, ...attributes }, text);

  return { SVG, byId, el, svg, button };
})();
