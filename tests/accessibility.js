// Runs in the page; `tests/accessibility.py` says what it checks.
() => {
  const found = [];
  const told = (what, element) => found.push(`${what}: ${element.outerHTML.slice(0, 120)}`);
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;
  const all = (selector) => [...document.querySelectorAll(selector)].filter(isShown);
  const nameOf = (element) => {
    const by = element.getAttribute("aria-labelledby");
    const label = element.labels?.length ? [...element.labels].map((one) => one.textContent).join(" ") : "";
    return (element.getAttribute("aria-label") || (by && document.getElementById(by)?.textContent) || label
      || element.textContent || element.getAttribute("title") || "").trim();
  };
  for (const element of all("a[href], button, input, select, textarea, video, [role=slider], [role=img], [role=region]"))
    if (!nameOf(element)) told("no name", element);
  for (const element of all("[role=slider]"))
    for (const name of ["min", "max", "now", "text"])
      if (!element.hasAttribute(`aria-value${name}`)) told(`no aria-value${name}`, element);
  for (const element of all("[tabindex]")) if (element.tabIndex > 0) told("moves the order of the focus", element);
  for (const element of all("img")) if (!element.hasAttribute("alt")) told("no alt", element);
  for (const element of all(".scroll")) if (element.scrollWidth > element.clientWidth && element.tabIndex < 0) told("a keyboard cannot scroll it", element);
  for (const element of all("button, select, input")) {
    const box = element.getBoundingClientRect();
    if (!element.closest(".lane") && (box.height < 20 || box.width < 20)) told("too small to be hit", element);
  }
  const levels = all("h1, h2, h3, h4").map((element) => Number(element.tagName[1]));
  if (levels.filter((level) => level === 1).length > 1) found.push(`${levels} has several h1`);
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  if (new Set(ids).size !== ids.length) found.push(`ids are not unique: ${ids}`);
  if (!document.documentElement.lang || !document.querySelector("main")) found.push("no language or no main");

  const parsed = (colour) => { const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
  const over = (top, below) => Object.fromEntries(["r", "g", "b"].map((c) => [c, top[c] * top.a + below[c] * (1 - top.a)]).concat([["a", 1]]));
  const groundOf = (element) => {
    if (!element) return { r: 255, g: 255, b: 255, a: 1 };
    const own = parsed(getComputedStyle(element).backgroundColor);
    return own.a === 1 ? own : over(own, groundOf(element.parentElement));
  };
  const light = ({ r, g, b }) => [r, g, b].map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const contrast = (a, b) => { const [low, high] = [light(a), light(b)].sort((x, y) => x - y); return (high + 0.05) / (low + 0.05); };
  for (const element of all("main *, header *, footer *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    if (!hasText || element.closest("svg, :disabled, option, datalist")) continue;
    const style = getComputedStyle(element), ground = groundOf(element);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = contrast(over(parsed(style.color), ground), ground);
    if (ratio < (large ? 3 : 4.5)) told(`contrast ${ratio.toFixed(2)}`, element);
  }
  return found;
}
