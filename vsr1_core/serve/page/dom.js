// Makes elements. Whatever is a string becomes text: nothing that comes from data is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "text") element.textContent = String(value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

export function put(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  const tenths = Math.round(value * 10), whole = Math.floor(tenths / 10), rest = `.${tenths % 10}`;
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, at) => (at ? String(part).padStart(2, "0") : String(part))).join(":") + (rest === ".0" ? "" : rest);
}

export function percent(value) {
  if (value === null || value === undefined) return "–";
  return value > 0.995 && value < 1 ? "> 99 %" : value < 0.005 && value > 0 ? "< 1 %" : `${Math.round(value * 100)} %`;
}

export function options(select, values, chosen) {
  put(select, values.map(([value, label]) => h("option", { value, selected: value === chosen }, label)));
  return select;
}
