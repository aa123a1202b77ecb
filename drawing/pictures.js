"use strict";
const LABELLED = 12, SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const outline = (b) => `M${b[1]} ${b[2]}H${b[3]}V${b[4]}H${b[1]}Z`;

function make(tag, text, name) {
  const one = document.createElement(tag);
  if (text !== undefined) one.textContent = text;
  if (name) one.className = name;
  return one;
}
function draw(tag, attributes) {
  const one = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  return one;
}
function choose(id, rows) {
  for (const [value, text] of rows) {
    const one = make("option", text);
    one.value = value;
    byId(id).append(one);
  }
}
// A picture in its own pixels, or a grey tile that says why there is none.
function framed(image, thumbnail, reason) {
  if (!thumbnail) return make("div", reason || "no picture", "missing");
  const svg = draw("svg", {viewBox: `0 0 ${image.width} ${image.height}`, role: "img", "aria-label": image.name});
  svg.append(draw("image", {width: image.width, height: image.height, preserveAspectRatio: "none",
    href: "data:image/jpeg;base64," + thumbnail}));
  return svg;
}
// Boxes [id, xmin, ymin, xmax, ymax, ...]; style: of a box its colour and whether it is dashed.
function outlines(svg, boxes, style, large) {
  const groups = new Map(), thick = large ? 2.5 : 1.5, still = {fill: "none", "vector-effect": "non-scaling-stroke"};
  for (const box of boxes) {
    const [stroke, dashed] = style(box), key = stroke + (dashed ? "-" : "");
    groups.set(key, {stroke, dashed, d: (groups.get(key)?.d || "") + outline(box)});
  }
  svg.append(draw("path", {d: boxes.map(outline).join(""), stroke: "#000", "stroke-opacity": large ? 0.55 : 0.4,
    "stroke-width": thick + 2, ...still}));
  for (const {stroke, dashed, d} of groups.values()) {
    const path = draw("path", {d, stroke, "stroke-width": thick, ...still});
    if (dashed) path.setAttribute("stroke-dasharray", large ? "7 4" : "5 3");
    svg.append(path);
  }
}
function labels(boxes, image, textOf) {
  const taken = [];
  return boxes.map((box) => {
    const text = label(box, image, textOf(box)), height = Number(text.getAttribute("font-size"));
    const x = Number(text.getAttribute("x"));
    let y = Number(text.getAttribute("y"));
    while (taken.some((one) => Math.abs(one[0] - x) < 4 * height && Math.abs(one[1] - y) < height)) y += height;
    taken.push([x, y]);
    text.setAttribute("y", y);
    return text;
  });
}
function label(box, image, words) {
  const height = Math.max(image.width, image.height) / 38;
  const at = {x: Math.max(0, box[1]) + height * 0.2, y: box[2] > height ? box[2] - height * 0.25 : box[2] + height,
    "font-size": height, "stroke-width": height / 6};
  const text = draw("text", at);
  text.textContent = words;
  return text;
}
function mark(svg, box, image, words) {
  svg.querySelector(".mark")?.remove();
  if (!box || !(svg instanceof SVGElement)) return;
  const group = draw("g", {class: "mark"});
  group.append(draw("path", {d: outline(box), fill: "#fff4", stroke: "#fff", "stroke-width": 4,
    "vector-effect": "non-scaling-stroke"}), label(box, image, words));
  svg.append(group);
}
// By how many tiles of a grid an arrow key leads on, 0 for other keys.
function arrowStep(key, grid) {
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  return {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[key] || 0;
}
