"""How the page looks and moves: its style sheet, and the one script of ours in it."""

STYLE = """
:root { color-scheme: light dark; --ink: #222; --pale: #555; --paper: #fff; --line: #d5d5d5; --soft: #f5f6f7;
  --link: #0b5c8f; --mark: #D55E00; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --pale: #aaa; --paper: #141414; --line: #3c3c3c; --soft: #1f2022; --link: #7cc4f0;
    --mark: #f08a3c; }
  /* Lightness turned over and hue kept: contrasts and the differences between colours stay those of the light page. */
  .chart svg.marks, figure > img { filter: invert(.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; }
body { font: 16px/1.55 "Liberation Sans", Arial, Helvetica, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 62rem; padding: 0 1rem 4rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; unicode-bidi: isolate; } h1 { margin: 1.5rem 0 .5rem; } h2 { margin: 3rem 0 .5rem; }
a { color: var(--link); } :focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
.question { color: var(--pale); margin: 0; } .answer { font-size: 1.2rem; margin: .5rem 0; }
.caveat { border-left: 4px solid var(--mark); padding: .1rem 0 .1rem .8rem; }
nav { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line); z-index: 2;
  display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; white-space: nowrap; padding: .6rem .2rem; font-size: .9rem; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  unicode-bidi: isolate; } thead th { white-space: normal; vertical-align: bottom; max-width: 10rem; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } figcaption { color: var(--pale); font-size: .85rem; margin-bottom: .5rem; }
figcaption strong { color: var(--ink); display: block; font-size: 1rem; }
figure > img { max-width: 100%; height: auto; background: #fff; }
.chart { overflow-x: auto; position: relative; display: block !important; min-height: 3rem; }
.chart.vega-embed { padding-right: 0; } .chart svg.marks { display: block; }
.chart svg.marks { max-width: 100%; height: auto; }
.chart .chart-wrapper { display: flex; flex-direction: column; }
.chart .vega-bindings { order: -1; display: flex; flex-wrap: wrap; gap: .3rem 2rem; padding: .5rem .6rem;
  background: var(--soft); border-radius: 6px; position: sticky; left: 0; align-self: flex-start; max-width: 100%; }
.chart .vega-bindings:empty { display: none; }
.vega-bind { display: flex; align-items: center; gap: .4rem; flex-wrap: wrap; }
.vega-bind-name { display: inline !important; }
.vega-bind input[type=range] { width: min(18rem, 45vw); vertical-align: middle; accent-color: var(--link); }
.vega-bind-radio { display: inline-flex; gap: .8rem; } .vega-bind label { min-width: 2rem; }
#vg-tooltip-element { background: var(--paper) !important; color: var(--ink) !important; max-width: 24rem;
  border: 1px solid var(--line) !important; }
#vg-tooltip-element td { unicode-bidi: isolate; white-space: pre-wrap; overflow-wrap: anywhere; }
#vg-tooltip-element td.key { color: var(--pale) !important; }
pre { overflow-x: auto; font: .75rem/1.35 "Liberation Mono", "Courier New", monospace; background: var(--soft);
  padding: .8rem; border-radius: 6px; unicode-bidi: plaintext; }
summary { cursor: pointer; padding: .2rem 0; } details details { margin-left: 1.2rem; }
.words { font-size: .85rem; color: var(--pale); }
.downloads { columns: 2; padding-left: 1.2rem; } .note { color: var(--pale); font-size: .9rem; }
@media (max-width: 40rem) { nav { flex-wrap: nowrap; overflow-x: auto; }
  body { font-size: 15px; } .answer { font-size: 1.1rem; } .downloads { columns: 1; } }
@page { margin: 1.6cm; }
/* On paper: every chart whole under its heading, coefficients and provenance, and of what else is folded only what the
   reader has opened. */
@media print {
  :root { color-scheme: light; }
  nav, .skip, .vega-bindings, .vega-embed details, .downloads, .downloads-title, details:not([open], .printed),
  section:has(.fit):not(:has(details[open])) { display: none !important; }
  .printed::details-content { content-visibility: visible; block-size: auto; }
  body { max-width: none; font-size: 10pt; padding: 0; } h2 { break-after: avoid; margin-top: 1.5rem; }
  figure, tr { break-inside: avoid; } figcaption, summary { break-after: avoid; }
  .scroll, .chart, pre { overflow: visible; } pre { white-space: pre-wrap; }
  .chart svg.marks { max-height: 21cm; } .chart .chart-wrapper { align-items: flex-start; }
  .printed pre { columns: 2; font-size: 6.5pt; } table { font-size: 8pt; } th, td { padding: .1rem .3rem; }
}
"""

# Vega and the charts' specifications are unpacked, and the charts drawn one after the other from the top. On a narrow
# screen panels stand below each other, legends under them, and the text of a document is broken into shorter lines.
SCRIPT = r"""
"use strict";
(async () => {
  const CELL = 7.2;
  async function unpacked(name) {
    const packed = atob(document.getElementById(name).textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  function rewrap(rows, columns) {
    let line = 0, x = 0, last = 0;
    for (const row of rows) {
      const width = row.x2 - row.x, lead = row.text_x - row.x;
      if (x && (row.position === 0 || x + width > columns)) { line += 1; x = 0; }
      Object.assign(row, { line, x, text_x: x + lead, x2: x + width });
      x += width; last = line;
      if (row.shown.includes("⏎")) { line += 1; x = 0; }
    }
    return last + 1;
  }
  function narrow(node, room, columns, lines) {
    if (Array.isArray(node)) { node.forEach((part) => narrow(part, room, columns, lines)); return; }
    if (node === null || typeof node !== "object") return;
    for (const panel of node.hconcat || node.concat || [])
      if (typeof panel.width === "number") panel.width = Math.max(panel.width, room);
    if (node.hconcat) { node.vconcat = node.hconcat; delete node.hconcat; }
    if (node.concat) node.columns = 1;
    if (node.concat || node.vconcat) { delete node.bounds; delete node.spacing; }
    const labels = node.encoding && node.encoding.y && node.encoding.y.axis;
    if (labels && labels.labels === false) delete labels.labels;
    const text = node.name === "tokens";
    if (text) { node.width = columns * CELL; node.height = lines * 20; }
    else if (typeof node.width === "number") node.width = Math.min(node.width, room);
    for (const [key, part] of Object.entries(node)) {
      if (key === "datasets" || key === "data") continue;
      if (columns && key === "scale" && part.domain && part.domain.length === 2 && part.domain[1] === 88
          && part.nice === false) part.domain = [0, columns];
      narrow(part, room, columns, lines);
    }
  }
  function follow(box, view) {
    const holder = box.parentElement.querySelector(".chosen");
    if (!holder) return;
    const fits = [...document.querySelectorAll(".fit")].filter((fit) =>
      fit.dataset.model === box.dataset.model && fit.dataset.hook === box.dataset.hook);
    const show = (layer) => {
      const fit = fits.find((one) => Number(one.dataset.layer) === layer);
      holder.hidden = !fit;
      if (!fit) return;
      holder.querySelector("summary").textContent = "statsmodels' summary of layer " + layer;
      holder.querySelector("pre").textContent = fit.querySelector("pre").textContent;
    };
    show(view.signal("chosen").layer?.[0]);
    view.addSignalListener("chosen", (_, chosen) => show(chosen.layer?.[0]));
  }
  const boxes = document.querySelectorAll(".chart");
  if (typeof DecompressionStream === "undefined") {
    boxes.forEach((box) => { box.textContent = "Charts need a browser of 2023 or later."; });
    return;
  }
  // The page's policy has the hash of this code; any other would not run.
  const vega = document.createElement("script");
  vega.textContent = await unpacked("vega");
  document.head.append(vega);
  for (const box of boxes) {
    const spec = JSON.parse(await unpacked(box.dataset.spec));
    if (box.clientWidth < 600) {
      const columns = Math.max(24, Math.floor((box.clientWidth - 75) / CELL));
      const tokens = spec.datasets && spec.datasets.tokens;
      narrow(spec, Math.max(220, box.clientWidth - 80), columns, tokens ? rewrap(tokens, columns) : 1);
      spec.config = spec.config || {};
      spec.config.legend = Object.assign({}, spec.config.legend, { orient: "bottom", columns: 2,
        layout: { bottom: { anchor: "start", direction: "vertical" } } });
    }
    try {
      const drawn = await vegaEmbed(box, spec, { mode: "vega-lite", renderer: "svg", ast: true,
        actions: { export: true, source: false, compiled: false, editor: false } });
      if (box.dataset.model !== undefined) follow(box, drawn.view);
      box.dataset.drawn = "yes";
    } catch (error) {
      box.textContent = "The chart could not be drawn: " + error.message;
      throw error;
    }
  }
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
"""
