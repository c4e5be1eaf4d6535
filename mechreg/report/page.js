// Vega and the charts' specifications are unpacked, and the charts drawn one after the other from the top. On a narrow
// screen panels stand below each other, legends under them, and the text of a document is broken into shorter lines.
"use strict";
(async () => {
  const CELL = 7.2;
  async function unpacked(name) {
    const packed = atob(document.getElementById(name).textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  function rewrap(rows, columns) {
    const starts = (row) => !row || row.position === 0 || row.shown.startsWith("␣");
    let line = 0, x = 0, last = 0;
    for (const [at, row] of rows.entries()) {
      const width = row.x2 - row.x, lead = row.text_x - row.x;
      let word = width;  // and the tokens that follow without a space
      for (let next = at + 1; starts(row) && !starts(rows[next]); next += 1) word += rows[next].x2 - rows[next].x;
      if (x && (row.position === 0 || x + (word > columns ? width : word) > columns)) { line += 1; x = 0; }
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
    return;  // the pictures stay
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
        i18n: { CLICK_TO_VIEW_ACTIONS: "Save the chart" },
        actions: { export: true, source: false, compiled: false, editor: false } });
      const menu = box.querySelector("details > summary");
      if (menu) menu.setAttribute("aria-label", "Save the chart: " + box.getAttribute("aria-label"));
      if (box.dataset.model !== undefined) follow(box, drawn.view);
      box.dataset.drawn = "yes";
    } catch (error) {
      box.textContent = "The chart could not be drawn: " + error.message;
      throw error;
    }
  }
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
