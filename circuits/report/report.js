"use strict";
// The page is its own data: the table of edges says what each edge is, the diagram's elements have ids made of the same
// names (node:a3.h5, edge:a3.h5->m4, group:a3.kv1->a3.h4), and the table of heads holds the evidence.

const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

const svg = document.querySelector("#stage svg");
const headings = all("#edges th").map((cell) => cell.textContent);
const edges = all("#edges tbody tr").map((row) => ({
  row, shape: byId("edge:" + row.dataset.edge), name: row.dataset.edge, from: row.dataset.from, to: row.dataset.to,
  size: Number(row.dataset.size), group: row.dataset.group, shown: true, on: false,
}));
const groups = all('#stage [id^="group:"]').map((shape) => {
  const [from, to] = shape.id.slice("group:".length).split("->");
  return { shape, from, to, shown: true, on: false };
});
const nodes = new Map(all('#stage [id^="node:"]').map((shape) => [shape.id.slice("node:".length), shape]));
const end = [...nodes.keys()].find((name) => /^(logits|(?:resid|mid)\d+)$/.test(name)) ?? "logits";
const evidence = new Map(all("#heads tr[data-node]").map((row) => [row.dataset.node, row.cells[1]]));
const steps = [...new Set(edges.map((edge) => edge.size))].sort((a, b) => a - b);
const READABLE = 0.78; // the smallest scale at which names of nodes are read
const state = { chosen: null, current: null, zoom: 1 };

// ---------------------------------------------------------------------------------------------- what is shown

function threshold() {
  return steps[Number(byId("threshold").value)] ?? 0;
}

function update() {
  const least = threshold();
  const groupsOn = new Set(all("[data-group]:checked").map((box) => box.dataset.group));
  for (const edge of edges) edge.shown = edge.size >= least && (!edge.group || groupsOn.has(edge.group));
  const used = new Set(["input", end, ...edges.filter((edge) => edge.shown).flatMap((edge) => [edge.from, edge.to])]);
  for (const group of groups) group.shown = used.has(group.from) && used.has(group.to);
  for (const each of [...edges, ...groups]) each.shape?.classList.toggle("gone", !each.shown);
  for (const [name, shape] of nodes) shape.classList.toggle("gone", !used.has(name));
  if (state.chosen && !used.has(state.chosen)) state.chosen = null;
  if (!used.has(state.current)) makeCurrent("input"); // what Tab leads to must be visible
  sayThreshold(least);
  highlight();
  hideCard();
}

function sayThreshold(least) {
  const percent = byId("edges").dataset.relative === "yes";
  const text = percent ? `${(100 * least).toPrecision(3)} %` : String(Number(least.toPrecision(3)));
  const count = edges.filter((edge) => edge.shown).length;
  byId("at-least").textContent = text;
  byId("count").textContent = `${count.toLocaleString("en")} of ${edges.length.toLocaleString("en")} edges`;
  byId("threshold").setAttribute("aria-valuetext", `${text}, ${byId("count").textContent}`);
}

// ---------------------------------------------------------------------------------------------- paths through a node

function reached(start, from, to, links) {
  const next = Map.groupBy(links, (link) => link[from]);
  const seen = new Set([start]);
  for (const name of seen) for (const link of next.get(name) ?? []) seen.add(link[to]);
  return seen;
}

function onPathsThrough(node) {
  const links = [...edges, ...groups].filter((link) => link.shown);
  const [begun, ending] = [reached("input", "from", "to", links), reached(end, "to", "from", links)];
  if (!begun.has(node) || !ending.has(node)) return [];
  const [before, after] = [reached(node, "to", "from", links), reached(node, "from", "to", links)];
  return links.filter(
    (link) => (before.has(link.to) && begun.has(link.from)) || (after.has(link.from) && ending.has(link.to)),
  );
}

function highlight() {
  const through = new Set(state.chosen ? onPathsThrough(state.chosen) : []);
  const touched = new Set([state.chosen, ...[...through].flatMap((link) => [link.from, link.to])]);
  for (const link of [...edges, ...groups]) {
    link.on = through.has(link);
    link.shape?.classList.toggle("on", link.on);
  }
  for (const [name, shape] of nodes) {
    shape.classList.toggle("on", touched.has(name));
    shape.classList.toggle("chosen", name === state.chosen);
    shape.setAttribute("aria-pressed", String(name === state.chosen));
  }
  svg.classList.toggle("choosing", state.chosen !== null);
  const count = edges.filter((edge) => edge.on).length;
  const found = count ? `${count} edges on paths from the input to the logits through ${state.chosen}`
    : `no path from the input to the logits leads through ${state.chosen} at this threshold`;
  byId("chosen").textContent = state.chosen ? `${found} (Escape: all)` : "";
  filterRows();
}

function choose(name) {
  state.chosen = state.chosen === name ? null : name;
  highlight();
  hideCard(); // it would cover the paths; pointing at the node again shows it
}

// ---------------------------------------------------------------------------------------------- the card

function scores(edge) {
  return headings.flatMap((heading, i) => {
    const text = edge.row.cells[i].textContent;
    return heading.startsWith("score") && text ? [`${heading} ${text}`] : [];
  });
}

function cardOfNode(name) {
  const [ins, outs] = ["to", "from"].map((end) => edges.filter((edge) => edge.shown && edge[end] === name));
  const parts = [make("b", nodes.get(name).dataset.what), make("span", `${ins.length} edges in, ${outs.length} out`)];
  const list = make("ul");
  for (const edge of [...ins, ...outs].sort((a, b) => b.size - a.size).slice(0, 3)) {
    list.append(make("li", `${edge.name}: ${scores(edge).join(", ")}`));
  }
  parts.push(list);
  if (evidence.has(name)) parts.push(...evidence.get(name).cloneNode(true).children);
  return parts;
}

function cardOfEdge(edge) {
  const facts = make("dl");
  headings.slice(1).forEach((heading, i) => {
    const text = edge.row.cells[i + 1].textContent;
    if (text) facts.append(make("dt", heading), make("dd", text));
  });
  return [make("b", edge.name), facts, make("span", byId("edges").dataset.about, "soft")];
}

function showCard(parts, shape) {
  const card = byId("card");
  card.replaceChildren(...parts);
  card.hidden = false;
  const frame = card.parentElement.getBoundingClientRect();
  const at = shape.getBoundingClientRect();
  const right = at.right - frame.left + 12;
  const room = document.documentElement.clientWidth - frame.left - card.offsetWidth - 4;
  const left = right <= room ? right : at.left - frame.left - card.offsetWidth - 12;
  const lowest = Math.min(frame.height, innerHeight - frame.top) - card.offsetHeight - 4;
  card.style.left = `${Math.max(0, Math.min(left, room))}px`;
  card.style.top = `${Math.max(0, -frame.top, Math.min(at.top - frame.top, lowest))}px`;
}

function hideCard() {
  byId("card").hidden = true;
  for (const edge of edges) mark(edge, false);
}

function mark(edge, hot) {
  edge.shape?.classList.toggle("hot", hot);
  edge.row.classList.toggle("hot", hot);
}

function showEdge(edge) {
  hideCard();
  mark(edge, true);
  if (edge.shape) showCard(cardOfEdge(edge), edge.shape);
}

function showNode(name) {
  hideCard();
  showCard(cardOfNode(name), nodes.get(name));
}

// ---------------------------------------------------------------------------------------------- keyboard

function nearest(name, [dx, dy]) {
  const centre = (shape) => {
    const box = shape.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const [x, y] = centre(nodes.get(name));
  let best = [Infinity, name];
  for (const [other, shape] of nodes) {
    if (other === name || shape.classList.contains("gone")) continue;
    const [toX, toY] = centre(shape);
    const ahead = dx * (toX - x) + dy * (toY - y);
    const distance = ahead + 3 * Math.abs(dx ? toY - y : toX - x);
    if (ahead > 2 && distance < best[0]) best = [distance, other];
  }
  return best[1];
}

function makeCurrent(name) {
  nodes.get(state.current)?.setAttribute("tabindex", "-1");
  state.current = name;
  nodes.get(name)?.setAttribute("tabindex", "0");
}

function goTo(name) {
  makeCurrent(name);
  nodes.get(name).focus();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function nodeKey(event, name) {
  if (event.key === "Enter" || event.key === " ") choose(name);
  else if (ARROWS[event.key]) goTo(nearest(name, ARROWS[event.key]));
  else return;
  event.preventDefault();
}

function rowKey(event, edge) {
  const way = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const rows = all("#edges tbody tr:not([hidden])");
  const next = rows[rows.indexOf(edge.row) + way];
  if (next) focusRow(next);
}

function makeCurrentRow(row) {
  for (const other of all('#edges tr[tabindex="0"]')) other.setAttribute("tabindex", "-1");
  row?.setAttribute("tabindex", "0");
}

function focusRow(row) {
  makeCurrentRow(row);
  row.focus();
}

// ---------------------------------------------------------------------------------------------- the table

function filterRows() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const listed = [];
  for (const edge of edges) {
    const text = `${edge.name} ${edge.row.cells[1].textContent}`.toLowerCase();
    const wanted = edge.shown && (!state.chosen || edge.on) && words.every((word) => text.includes(word));
    edge.row.hidden = !wanted;
    if (wanted) listed.push(edge.name);
  }
  if (!document.querySelector('#edges tr[tabindex="0"]:not([hidden])')) {
    makeCurrentRow(document.querySelector("#edges tbody tr:not([hidden])"));
  }
  byId("rows").textContent = `${listed.length.toLocaleString("en")} of ${edges.length.toLocaleString("en")}`;
  if (parent !== window) parent.postMessage({ node: state.chosen, edges: listed }, "*"); // a notebook's widget
}

function sortBy(column) {
  const cell = all("#edges th")[column];
  const way = cell.getAttribute("aria-sort") === "descending" ? 1 : -1;
  const value = (edge) => edge.row.cells[column].textContent;
  const number = (edge) => (Number.isNaN(parseFloat(value(edge))) ? -Infinity : parseFloat(value(edge)));
  const order = cell.classList.contains("number")
    ? (a, b) => number(a) - number(b)
    : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
  const sorted = [...edges].sort((a, b) => way * order(a, b));
  byId("edges").tBodies[0].append(...sorted.map((edge) => edge.row));
  for (const other of all("#edges th")) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
}

// ---------------------------------------------------------------------------------------------- zoom, theme, copy

function zoomTo(scale) {
  state.zoom = Math.max(0.02, Math.min(4, scale));
  svg.style.width = `${svg.viewBox.baseVal.width * state.zoom}px`;
  svg.style.height = `${svg.viewBox.baseVal.height * state.zoom}px`;
}

function fitting() {
  const { width, height } = svg.viewBox.baseVal;
  const stage = byId("stage");
  const tallest = parseFloat(getComputedStyle(stage).maxHeight);
  return Math.min((stage.clientWidth - 2) / width, (tallest - 2) / height, 1.7);
}

function beginReadable() {
  zoomTo(Math.max(fitting(), READABLE));
  const stage = byId("stage");
  stage.scrollLeft = (stage.scrollWidth - stage.clientWidth) / 2;
}

function drag(event) {
  const stage = byId("stage");
  if (event.pointerType !== "mouse" || event.button !== 0) return;
  const move = (to) => {
    stage.classList.add("moving");
    stage.scrollBy(-to.movementX, -to.movementY);
  };
  const stop = () => {
    stage.classList.remove("moving");
    removeEventListener("pointermove", move);
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", stop, { once: true });
}

function nextTheme() {
  const themes = ["auto", "light", "dark"];
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = themes[(themes.indexOf(now) + 1) % themes.length];
  document.documentElement.dataset.theme = next;
  byId("theme").textContent = `Theme: ${next}`;
}

function copy(button) {
  const text = button.previousElementSibling;
  getSelection().selectAllChildren(text);
  const done = document.execCommand("copy");
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

// ---------------------------------------------------------------------------------------------- beginning

function prepareNode(shape, name) {
  const link = shape.querySelector("a");
  shape.dataset.what = (link?.getAttribute("xlink:title") ?? name).split(": ")[0];
  for (const title of all("title", shape)) title.remove();
  link?.removeAttribute("xlink:title");
  for (const [key, value] of Object.entries({ tabindex: "-1", role: "button", "aria-label": shape.dataset.what })) {
    shape.setAttribute(key, value);
  }
  shape.addEventListener("pointerenter", () => showNode(name));
  shape.addEventListener("pointerleave", hideCard);
  shape.addEventListener("focus", () => { makeCurrent(name); showNode(name); });
  shape.addEventListener("blur", hideCard);
  shape.addEventListener("click", (event) => {
    goTo(name);
    choose(name);
    if (event.pointerType === "touch") showNode(name); // there is no pointing without a mouse
  });
  shape.addEventListener("keydown", (event) => nodeKey(event, name));
  byId("nodes").append(Object.assign(make("option"), { value: name }));
}

function prepareEdge(edge) {
  edge.row.setAttribute("tabindex", "-1");
  edge.row.addEventListener("pointerenter", () => { hideCard(); mark(edge, true); });
  edge.row.addEventListener("pointerleave", hideCard);
  edge.row.addEventListener("focus", () => showEdge(edge));
  edge.row.addEventListener("blur", hideCard);
  edge.row.addEventListener("keydown", (event) => rowKey(event, edge));
  edge.row.addEventListener("click", () => focusRow(edge.row));
  if (!edge.shape) return;
  for (const title of all("title", edge.shape)) title.remove();
  for (const link of all("a", edge.shape)) link.removeAttribute("xlink:title");
  for (const line of all("path", edge.shape)) {
    const hit = line.cloneNode();
    hit.setAttribute("class", "hit");
    line.after(hit);
  }
  edge.shape.addEventListener("pointerenter", () => showEdge(edge));
  edge.shape.addEventListener("pointerleave", hideCard);
}

function find() {
  const name = byId("search").value.trim();
  const exact = nodes.has(name) ? name : [...nodes.keys()].find((each) => each.startsWith(name));
  if (!name || !exact) return;
  goTo(exact);
  nodes.get(exact).scrollIntoView({ block: "nearest", inline: "center" });
}

function prepareControls() {
  const slider = byId("threshold");
  slider.max = String(Math.max(0, steps.length - 1));
  const crowded = steps.findIndex((least) => edges.filter((edge) => edge.size >= least).length <= 200);
  slider.value = String(Math.max(0, crowded));
  for (const input of [slider, ...all("[data-group][type=checkbox]")]) input.addEventListener("input", update);
  byId("filter").addEventListener("input", filterRows);
  byId("search").addEventListener("change", find);
  byId("theme").addEventListener("click", nextTheme);
  byId("fit").addEventListener("click", () => zoomTo(fitting()));
  byId("zoom-in").addEventListener("click", () => zoomTo(state.zoom * 1.25));
  byId("zoom-out").addEventListener("click", () => zoomTo(state.zoom / 1.25));
  byId("stage").addEventListener("pointerdown", drag);
  byId("stage").addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomTo(state.zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
  }, { passive: false });
  for (const button of all(".copy")) button.addEventListener("click", () => copy(button));
}

function prepareHeadings() {
  all("#edges th").forEach((cell, column) => {
    const button = make("button", cell.textContent);
    button.type = "button";
    button.addEventListener("click", () => sortBy(column));
    cell.replaceChildren(button);
  });
}

function begin() {
  document.documentElement.classList.add("ready");
  for (const [name, shape] of nodes) prepareNode(shape, name);
  edges.forEach(prepareEdge);
  groups.forEach(({ shape }) => all("title", shape).forEach((title) => title.remove()));
  makeCurrent("input");
  prepareHeadings();
  prepareControls();
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.chosen) choose(state.chosen);
    if (event.key === "Escape") hideCard();
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) beginReadable();
    width = innerWidth;
  });
  beginReadable();
  update();
}

begin();
