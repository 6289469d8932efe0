// One metric of several runs as lines of an SVG.

import { made } from "./page.js";

const WIDE = 400, HIGH = 200, LEFT = 48, RIGHT = 8, TOP = 8, BOTTOM = 22;
const SVG = "http://www.w3.org/2000/svg";

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function short(value) {
  if (value !== 0 && Math.abs(value) < 1e-3) return Number(value.toPrecision(3)).toExponential();
  const [size, unit] = UNITS.find(([size]) => Math.abs(value) >= 10 * size) ?? [1, ""];
  return `${Number((value / size).toPrecision(3))}${unit}`;
}

// Round numbers between two ends, about four.
function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + 1e-9 * step; at += 1) found.push(at * step);
  return found;
}

// An exponential mean that begins at the first point; without the bias towards it of a plain one.
function smoothed(points, share) {
  let sum = 0, weight = 0;
  return points.map(([step, value]) => {
    sum = share * sum + (1 - share) * value;
    weight = share * weight + (1 - share);
    return [step, sum / weight];
  });
}

// series: { colour, points: [[step, value]], errors: Map of step -> standard error }; share: of smoothing, 0 to 1.
export function chart(name, series, share) {
  const all = series.flatMap(({ points }) => points);
  const steps = all.map(([step]) => step), values = all.map(([, value]) => value);
  for (const { points, errors } of series)
    for (const [step, value] of points) values.push(value + (errors.get(step) ?? 0), value - (errors.get(step) ?? 0));
  const ends = (list) => [list.reduce((a, b) => Math.min(a, b)), list.reduce((a, b) => Math.max(a, b))];
  let [left, right] = ends(steps), [low, high] = ends(values);
  if (left === right) [left, right] = [left - 1, right + 1];
  if (low === high) [low, high] = low === 0 ? [-1, 1] : [low - Math.abs(low) / 10, high + Math.abs(high) / 10];
  const x = (step) => LEFT + ((step - left) / (right - left)) * (WIDE - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HIGH - TOP - BOTTOM);
  const picture = drawn("svg", { class: "chart", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": name });
  for (const value of ticks(low, high)) {
    picture.append(drawn("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value) }));
    picture.append(drawn("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const step of ticks(left, right).filter(Number.isInteger))
    picture.append(drawn("text", { x: x(step), y: HIGH - 6, "text-anchor": "middle" }, short(step)));
  const band = (points, errors) => {
    const edge = (sign) => points.map(([step, value]) => `${x(step).toFixed(1)},${y(value + sign * (errors.get(step) ?? 0)).toFixed(1)}`);
    return drawn("polygon", { class: "band", points: [...edge(1), ...edge(-1).reverse()].join(" ") });
  };
  const line = (points, kind) => drawn("polyline", { class: kind, points: points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
  for (const { colour, points, errors } of series) {
    if (errors.size) picture.append(band(points, errors));
    // A single value is no line.
    if (points.length === 1) picture.append(drawn("circle", { class: `c${colour}`, cx: x(points[0][0]), cy: y(points[0][1]), r: 3 }));
    if (share > 0) picture.append(line(points, `c${colour} raw`));
    picture.append(line(share > 0 ? smoothed(points, share) : points, `c${colour}`));
  }
  const told = made("output", { textContent: series.map(({ points }) => short(points.at(-1)[1])).join(" · ") });
  const last = told.textContent;
  picture.onpointermove = (event) => {
    const box = picture.getBoundingClientRect();
    const step = left + ((((event.clientX - box.left) / box.width) * WIDE - LEFT) / (WIDE - LEFT - RIGHT)) * (right - left);
    const near = series.map(({ points }) => points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a)));
    told.textContent = `${near[0][0]}: ${near.map(([, value]) => short(value)).join(" · ")}`;
  };
  picture.onpointerleave = () => { told.textContent = last; };
  return made("figure", {}, made("figcaption", {}, made("span", { textContent: name }), told), picture);
}
