// The formulas of the page "Margins by hand". Angles are in radians. A margin is {m1, m2, m3, s, classes}; all other
// classes are at a right angle to the feature, so that their logits are 0. tests/test_site.py holds them against the
// package.
"use strict";

const marginSoftmax = (() => {
  // The cosine, continued so that it keeps falling.
  function psi(u) {
    const k = Math.floor(u / Math.PI);
    return (k % 2 ? -1 : 1) * Math.cos(u) - 2 * k;
  }

  // z_y / s
  function target({ m1, m2, m3 }, theta) {
    return psi(m1 * theta + m2) - m3;
  }

  // Its derivative by theta.
  function slope({ m1, m2 }, theta) {
    return -m1 * Math.abs(Math.sin(m1 * theta + m2));
  }

  function softplus(x) {
    return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  }

  // softplus(L - z_y), where L = log sum_{j != y} e^0
  function loss(margin, theta) {
    return softplus(Math.log(margin.classes - 1) - margin.s * target(margin, theta));
  }

  // Angle to one other class at which its logit equals the own one; NaN where no angle is large enough.
  function boundary(margin, theta) {
    return Math.acos(target(margin, theta));
  }

  // Angle at which the own class is as likely as all others together; NaN where even the angle 0 is too large.
  function halfway(margin) {
    const above = (theta) => margin.s * target(margin, theta) > Math.log(margin.classes - 1);
    let [low, high] = [0, Math.PI];
    if (!above(low)) return NaN;
    if (above(high)) return Math.PI;
    for (let step = 0; step < 60; step++) {
      const middle = (low + high) / 2;
      if (above(middle)) low = middle;
      else high = middle;
    }
    return low;
  }

  function values(margin, theta) {
    return {
      logit: margin.s * target(margin, theta),
      slope: margin.s * slope(margin, theta),
      loss: loss(margin, theta),
      boundary: boundary(margin, theta),
      halfway: halfway(margin),
    };
  }

  // Those of the papers, with the constructor that gives the same logits to a feature of length s and class weights of
  // length 1. `s` is missing where a paper has no scale.
  const published = [
    { name: "softmax", m1: 1, m2: 0, m3: 0, code: "ms.plain()" },
    { name: "L-, A-Softmax, m = 2", m1: 2, m2: 0, m3: 0, code: "ms.a_softmax(2)" },
    { name: "L-, A-Softmax, m = 3", m1: 3, m2: 0, m3: 0, code: "ms.a_softmax(3)" },
    { name: "L-, A-Softmax, m = 4", m1: 4, m2: 0, m3: 0, code: "ms.a_softmax(4)" },
    { name: "AM-Softmax", m1: 1, m2: 0, m3: 0.35, s: 30, code: "ms.am_softmax()" },
    { name: "CosFace", m1: 1, m2: 0, m3: 0.35, s: 64, code: "ms.cosface()" },
    { name: "ArcFace", m1: 1, m2: 0.5, m3: 0, s: 64, code: "ms.arcface()" },
    { name: "combined", m1: 1, m2: 0.3, m3: 0.2, s: 64, code: "ms.combined(1.0, 0.3, 0.2)" },
  ];

  return { psi, target, slope, loss, boundary, halfway, values, published };
})();
