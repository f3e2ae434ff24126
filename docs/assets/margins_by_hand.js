// The page "Margins by hand": sliders, four drawings and a table of values. The formulas are in margins.js.
"use strict";

(() => {
  const root = document.getElementById("by-hand");
  const { target, slope, loss, boundary, values, published } = marginSoftmax;
  const DEGREE = Math.PI / 180;
  const CLASSES = [2, 3, 5, ...[10, 100, 1000, 1e4, 1e5, 1e6].flatMap((n) => [n, 2 * n, 5 * n]), 1e7];
  const TINY = 1e-9;

  const SLIDERS = [
    ["m1", "m1, multiplies the angle", 0.5, 4, 0.05, 1, (v) => v.toFixed(2)],
    ["m2", "m2, added to the angle", 0, 1.2, 0.01, 0.5, (v) => `${v.toFixed(2)} rad, ${degrees(v)}`],
    ["m3", "m3, taken off the cosine", 0, 1, 0.01, 0, (v) => v.toFixed(2)],
    ["s", "s, the scale", 1, 128, 1, 64, (v) => v.toFixed(0)],
    ["classes", "C, the number of classes", 0, CLASSES.length - 1, 1, CLASSES.indexOf(1e4), (v) => whole(CLASSES[v])],
    ["theta", "θ, where values are read", 0, 180, 0.5, 45, (v) => `${v.toFixed(1)}°, ${(v * DEGREE).toFixed(3)} rad`],
  ];

  // AM-Softmax differs from CosFace by its scale alone, and all are drawn at the scale of the slider.
  const COMPARED = published
    .filter(({ name }) => name !== "AM-Softmax")
    .map((margin) => (margin.name === "CosFace" ? { ...margin, name: "AM-Softmax, CosFace" } : margin));
  const COMPARED_AT_FIRST = ["softmax", "L-, A-Softmax, m = 4", "AM-Softmax, CosFace"];

  const SHAPES = new Set(["svg", "path", "line", "text", "rect", "circle", "clipPath"]);

  function element(tag, attributes = {}, ...children) {
    const namespace = SHAPES.has(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const made = document.createElementNS(namespace, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const degrees = (angle) => `${(angle / DEGREE).toFixed(1)}°`;
  const whole = (n) => n.toLocaleString("en");
  const control = (name) => document.getElementById(`by-hand-${name}`);

  const minus = (text) => text.replaceAll("-", "−");
  const fixed = (value) => minus((Math.abs(value) < 0.0005 ? 0 : value).toFixed(3));
  const small = (value) => (value < 0.001 ? minus(value.toExponential(2)) : value.toPrecision(4));

  function slider([name, label, min, max, step, value]) {
    const input = element("input", { id: `by-hand-${name}`, type: "range", min, max, step });
    input.value = value;
    // `for`: a label without it is that of the output, which comes first.
    return element("label", { class: "by-hand-slider", for: input.id },
      element("span", {}, label), element("output"), input);
  }

  function stroke(style) {
    return element("svg", { viewBox: "0 0 36 10", width: 36, height: 10, "aria-hidden": "true" },
      element("line", { class: `by-hand-curve ${style}`, x1: 1, x2: 35, y1: 5, y2: 5 }));
  }

  function checkbox(margin, i) {
    const input = element("input", { id: `by-hand-compare-${i}`, type: "checkbox" });
    input.checked = COMPARED_AT_FIRST.includes(margin.name);
    return element("label", { class: "by-hand-compare" }, input, stroke(`by-hand-${i}`), ` ${margin.name}`);
  }

  function startingPoints() {
    const select = element("select", { id: "by-hand-start" }, element("option", { value: "" }, "choose …"));
    published.forEach(({ name }, i) => select.append(element("option", { value: i }, name)));
    return element("label", { class: "by-hand-start" }, "Set the sliders to ", select);
  }

  function startFrom(margin) {
    for (const name of ["m1", "m2", "m3", "s"]) if (name in margin) control(name).value = margin[name];
  }

  // The page's whole state is what its controls show.
  function state() {
    const read = (name) => Number(control(name).value);
    const common = { s: read("s"), classes: CLASSES[read("classes")] };
    const own = { name: "yours", style: "by-hand-own", m1: read("m1"), m2: read("m2"), m3: read("m3"), ...common };
    const others = COMPARED
      .map((margin, i) => ({ ...margin, ...common, style: `by-hand-${i}`, shown: control(`compare-${i}`).checked }))
      .filter(({ shown }) => shown);
    return { margins: [...others, own], own, theta: read("theta") * DEGREE };
  }

  // A whole number of steps of 1, 2 or 5 times a power of ten, about five of them, over a range.
  function ticks(low, high) {
    const power = 10 ** Math.floor(Math.log10((high - low) / 4));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => (high - low) / s <= 6);
    return Array.from({ length: Math.floor((high - low) / step + TINY) + 1 }, (_, i) =>
      Number(((Math.ceil(low / step - TINY) + i) * step).toPrecision(6))).filter((t) => t <= high + TINY);
  }

  const FRAME = { left: 46, right: 350, top: 10, bottom: 222 };

  // An empty drawing, with the maps from its own units to those of the page.
  function panel({ id, label, xlabel, xs, ys, square = false }) {
    const right = square ? FRAME.left + FRAME.bottom - FRAME.top : FRAME.right;
    const x = (v) => FRAME.left + ((v - xs[0]) / (xs.at(-1) - xs[0])) * (right - FRAME.left);
    const y = (v) => FRAME.bottom - ((v - ys[0]) / (ys[1] - ys[0])) * (FRAME.bottom - FRAME.top);
    const svg = element("svg", { viewBox: "0 0 360 264", role: "img", "aria-label": `${label}. Its values: the table.` });
    const size = { width: right - FRAME.left, height: FRAME.bottom - FRAME.top };
    svg.append(element("clipPath", { id: `by-hand-clip-${id}` },
      element("rect", { x: FRAME.left, y: FRAME.top, ...size })));
    for (const v of xs) {
      svg.append(element("line", { class: "by-hand-grid", x1: x(v), x2: x(v), y1: FRAME.top, y2: FRAME.bottom }));
      svg.append(element("text", { x: x(v), y: FRAME.bottom + 16, "text-anchor": "middle" }, String(v)));
    }
    for (const v of square ? xs : ticks(...ys)) {
      svg.append(element("line", { class: "by-hand-grid", x1: FRAME.left, x2: right, y1: y(v), y2: y(v) }));
      svg.append(element("text", { x: FRAME.left - 6, y: y(v) + 4, "text-anchor": "end" }, minus(String(v))));
    }
    svg.append(element("text", { x: (FRAME.left + right) / 2, y: 258, "text-anchor": "middle" }, xlabel));
    const inside = { "clip-path": `url(#by-hand-clip-${id})` };
    const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(2)} ${y(b).toFixed(2)}`).join("");
    return {
      svg,
      curve: (points, margin) => svg.append(element("path", {
        ...inside, class: `by-hand-curve ${margin.style}`, "data-margin": margin.name, d: path(points) })),
      area: (points) => svg.append(element("path", { ...inside, class: "by-hand-area", d: `${path(points)}Z` })),
      upright: (v) => svg.append(
        element("line", { class: "by-hand-cursor", x1: x(v), x2: x(v), y1: FRAME.top, y2: FRAME.bottom })),
      dot: (a, b) => svg.append(element("circle", { ...inside, class: "by-hand-dot", cx: x(a), cy: y(b), r: 4.5 })),
      word: (a, b, text) => svg.append(
        element("text", { class: "by-hand-word", x: x(a), y: y(b), "text-anchor": "middle" }, text)),
    };
  }

  const EVERY_HALF_DEGREE = Array.from({ length: 361 }, (_, i) => i / 2);

  function overTheAngle(id, label, height, ys, { margins, own, theta }) {
    const drawn = panel({ id, label, ys, xlabel: "angle to the own class, degrees", xs: [0, 30, 60, 90, 120, 150, 180] });
    drawn.upright(theta / DEGREE);
    for (const margin of margins) drawn.curve(EVERY_HALF_DEGREE.map((a) => [a, height(margin, a * DEGREE)]), margin);
    drawn.dot(theta / DEGREE, height(own, theta));
    return drawn.svg;
  }

  function targetPanel(now) {
    const lowest = Math.min(...now.margins.map((margin) => target(margin, Math.PI)));
    return overTheAngle("target", "Logit of the own class, divided by s", target, [Math.max(lowest, -3.2) - 0.1, 1.1], now);
  }

  function slopePanel(now) {
    const steepest = Math.max(...now.margins.map(({ m1 }) => m1));
    return overTheAngle("slope", "Slope of that logit", slope, [-1.05 * steepest, 0.1], now);
  }

  function lossPanel(now) {
    // The losses of multiples of the angle, three times as high, would leave no room for what the others do.
    const calm = now.margins.filter(({ m1 }) => m1 < 2);
    const highest = Math.max(...(calm.length ? calm : now.margins).map((margin) => loss(margin, Math.PI / 2)));
    return overTheAngle("loss", "Loss", loss, [-0.03 * highest, 1.05 * highest], now);
  }

  // The angle to the other class at which both logits are equal. Below it no angle is large enough: 180 degrees.
  const boundaryDegrees = (margin, a) => {
    const other = boundary(margin, a * DEGREE);
    return Number.isNaN(other) ? 180 : other / DEGREE;
  };
  const boundaryPoints = (margin) =>
    EVERY_HALF_DEGREE.filter((a) => a <= 90).map((a) => [a, boundaryDegrees(margin, a)]);
  const mirrored = (points) => points.map(([a, b]) => [b, a]);

  function boundaryPanel({ margins, own, theta }) {
    const label = "Boundaries of two classes, by the angles to both";
    const xs = [0, 15, 30, 45, 60, 75, 90];
    const drawn = panel({ id: "boundary", label, xs, ys: [0, 90], xlabel: "angle to class 1, degrees", square: true });
    const points = boundaryPoints(own);
    drawn.area([[0, 0], ...points, [180, 180], ...mirrored(points).reverse()]);
    if (theta <= Math.PI / 2) drawn.upright(theta / DEGREE);
    for (const margin of margins) {
      drawn.curve(boundaryPoints(margin), margin);
      drawn.curve(mirrored(boundaryPoints(margin)), margin);
    }
    drawn.dot(theta / DEGREE, boundaryDegrees(own, theta / DEGREE));
    drawn.word(12, 83, "class 1");
    drawn.word(78, 4, "class 2");
    return drawn.svg;
  }

  const PANELS = [
    ["Logit of the own class", "z_y / s over the angle θ to the own class", targetPanel],
    ["Its slope", "dz_y / (s dθ), θ in radians", slopePanel],
    ["Loss", "all other classes at 90° to the feature", lossPanel],
    ["Boundary of two classes", "upwards: angle to class 2. Shaded: neither side yet satisfies your margin", boundaryPanel],
  ];

  function figure([title, note, draw], now) {
    return element("figure", {},
      element("figcaption", {}, element("strong", {}, title), element("span", {}, note)), draw(now));
  }

  const COLUMNS = ["margin", "logit z_y", "slope, per radian", "loss", "other class beyond", "even odds at"];

  function table({ margins, theta }) {
    const row = (cell, texts) => element("tr", {}, ...texts.map((text) => element(cell, {}, text)));
    const rows = [...margins].reverse().map((margin) => {
      const { logit, slope, loss, boundary, halfway } = values(margin, theta);
      const made = row("td", [fixed(logit), fixed(slope), small(loss),
        Number.isNaN(boundary) ? "nowhere" : degrees(boundary), Number.isNaN(halfway) ? "no angle" : degrees(halfway)]);
      made.prepend(element("th", { scope: "row" }, stroke(margin.style), ` ${margin.name}`));
      return made;
    });
    return element("table", {}, element("caption", {}, `At θ = ${degrees(theta)}`),
      element("thead", {}, row("th", COLUMNS)), element("tbody", {}, ...rows));
  }

  function redraw() {
    for (const [name, , , , , , shown] of SLIDERS) {
      const input = control(name);
      const text = shown(Number(input.value));
      input.parentElement.querySelector("output").value = text;
      input.setAttribute("aria-valuetext", text);
    }
    const now = state();
    const { m1, m2, m3, s } = now.own;
    drawings.replaceChildren(...PANELS.map((one) => figure(one, now)));
    numbers.replaceChildren(table(now));
    code.textContent = `ms.combined(${m1}, ${m2}, ${m3}, scale=${s})`;
  }

  const drawings = element("div", { class: "by-hand-drawings" });
  const numbers = element("div", { class: "by-hand-numbers", tabindex: 0, role: "region", "aria-label": "Values" });
  const code = element("code", { id: "by-hand-code" });
  root.replaceChildren(
    element("div", { class: "by-hand-controls" }, startingPoints(), ...SLIDERS.map(slider)),
    element("fieldset", { class: "by-hand-comparisons" }, element("legend", {}, "Beside it"),
      element("span", { class: "by-hand-compare" }, stroke("by-hand-own"), " yours"), ...COMPARED.map(checkbox)),
    drawings, numbers, element("p", {}, "Yours in code: ", code));
  root.addEventListener("input", ({ target: { id, value } }) => {
    if (id === "by-hand-start" && value !== "") startFrom(published[value]);
    if (["m1", "m2", "m3", "s"].some((name) => id === `by-hand-${name}`)) control("start").value = "";
    redraw();
  });
  redraw();
})();
