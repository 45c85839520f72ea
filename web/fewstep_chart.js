// A line chart over iterations, on uPlot: raw and smoothed values, stages as dashed lines, in the colours of the page.
import uPlot from "./vendor/uplot/uPlot.esm.mjs";
import { define, figure, make } from "./fewstep_elements.js";
import { say, sayName } from "./fewstep_words.js";

const STYLESHEET = new URL("./vendor/uplot/uPlot.min.css", import.meta.url);
const SMOOTHING = 0.9;

/** An exponential moving average without a start from 0, begun anew in every stage; gaps stay gaps. */
export function smoothed(values, stages) {
  let sum = 0;
  let weight = 0;
  return values.map((value, i) => {
    if (i && stages[i] !== stages[i - 1]) sum = weight = 0;
    if (value === null) return null;
    sum = SMOOTHING * sum + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return sum / weight;
  });
}

/** The places in a list of stages at which one begins, but for the first. */
export function boundaries(stages) {
  return stages.flatMap((stage, i) => (i && stage !== stages[i - 1] ? [i] : []));
}

/** The places between which a line of values is broken: around each beginning, the nearest that have one. */
export function breaks(values, stages) {
  return boundaries(stages).map((start) => {
    let [before, after] = [start - 1, start];
    while (before > 0 && values[before] === null) before--;
    while (after < values.length - 1 && values[after] === null) after++;
    return [before, after];
  });
}

/** What a chart shows, in words: of each line the first and the last value; iterations and steps as they are. */
export function described({ x, lines, xLabel = "iteration" }) {
  const said = lines.flatMap(({ label, values }) => {
    const known = values.filter((value) => value !== null && value !== undefined);
    return known.length ? [say`${label} from ${figure(known[0])} to ${figure(known.at(-1))}`] : [];
  });
  return said.length ? say`Chart over ${say(xLabel)} ${x[0]} to ${x.at(-1)}: ${said.join("; ")}.` : say("Chart without values yet.");
}

class Chart extends HTMLElement {
  #plot = null;
  #shape = "";
  #content = null;
  #waiting = false; // to be seen
  #sizes = new ResizeObserver(() => this.#resize());
  #themes = new MutationObserver(() => this.#plot?.redraw(false, true));

  constructor() {
    super();
    this.attachShadow({ mode: "open" });
    const sheet = make("link", { rel: "stylesheet", href: STYLESHEET });
    const style = make("style", { textContent: `:host { display: block; overflow: hidden; min-height: 0; } .u-legend { font-size: 0.9em; color: inherit; }
      .u-legend th { font-weight: normal; } .u-inline tr { margin-right: 0.8em; } .uplot { font: inherit; }
      .u-inline .u-value { display: inline-block; min-width: 4.2em; }` });
    this.area = document.createElement("div");
    this.shadowRoot.append(sheet, style, this.area);
  }

  /** In em, where the element grows with its key, however long the names in it; null where plot and key share the element's height. */
  plotHeight = null;

  connectedCallback() {
    for (const sized of [this, this.area]) this.#sizes.observe(sized); // a legend that wraps leaves the plot less room
    for (const root of [document.documentElement, document.body])
      this.#themes.observe(root, { attributes: true, attributeFilter: ["class", "style"] });
    if (this.#content) this.draw(this.#content);
  }

  disconnectedCallback() {
    this.#sizes.disconnect();
    this.#themes.disconnect();
    this.#drop();
  }

  /** {x, stages, names, log, lines: [{label, values, colour, dash, faint}]}, and for an x that is no iteration xLabel, which is on a log
   *  scale then. points: show every point. Colours are CSS variables of the page or the element. */
  draw(content) {
    this.#content = content;
    this.role = "img";
    this.ariaLabel = described(content);
    this.#waiting = !this.isConnected || !this.clientWidth;
    if (this.#waiting) return;
    const shape = JSON.stringify([content.log, content.lines.map((line) => [line.label, line.colour, line.faint])]);
    if (shape !== this.#shape) this.#drop();
    this.#shape = shape;
    if (this.#plot) return this.#plot.setData(this.#data(content));
    this.#plot = new uPlot(this.#options(content), this.#data(content), this.area);
  }

  /** What the chart shows, for a reader without eyes for it, and for tests. */
  get data() {
    return this.#plot?.data ?? [];
  }

  #data({ x, log, lines }) {
    const drawable = (value) => (value === null || (log && value <= 0) ? null : value);
    return [x, ...lines.map((line) => line.values.map(drawable))];
  }

  #drop() {
    this.#plot?.destroy();
    this.#plot = null;
    this.#shape = "";
  }

  #resize() {
    if (this.#content && (this.#waiting || !this.#plot)) this.draw(this.#content);
    const { width, height } = this.#size();
    if (this.#plot && (this.#plot.width !== width || this.#plot.height !== height)) this.#plot.setSize({ width, height });
  }

  #size() {
    const legend = this.area.querySelector(".u-legend")?.offsetHeight ?? 22;
    const height = this.plotHeight ? this.plotHeight * this.#em : Math.max(this.clientHeight - legend, 50);
    return { width: Math.max(this.clientWidth, 50), height };
  }

  get #em() {
    return parseFloat(getComputedStyle(this).fontSize);
  }

  #font(scale) {
    return `${this.#em * scale}px system-ui, sans-serif`;
  }

  #colour(name) {
    return getComputedStyle(this).getPropertyValue(name).trim() || "#888";
  }

  #options({ log, lines, names, xLabel, points }) {
    const axis = { stroke: () => this.#colour("--soft"), font: this.#font(1), ticks: { show: false },
      grid: { stroke: () => this.#colour("--line"), width: 0.5 } };
    return {
      ...this.#size(),
      padding: [names ? 1.6 * this.#em : null, null, null, null], // room for the stages' names: a loss begins at the top
      scales: { x: { time: false, ...(xLabel ? { distr: 3, log: 2 } : {}) }, y: log ? { distr: 3 } : {} },
      axes: [{ ...axis, size: 2.5 * this.#em }, { ...axis, size: 4.8 * this.#em, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : figure(tick))) }],
      series: [{ label: say(xLabel ?? "iteration") }, ...lines.map((line) => this.#series(line, points))],
      cursor: { points: { size: 6 }, drag: { setScale: false }, move: (plot, left, top) => this.#unscaled(plot, left, top) },
      hooks: { drawClear: [(plot) => this.#drawStages(plot)] },
    };
  }

  /** Values that are missing are spanned, but nothing joins one stage to the next. */
  #series({ label, colour, dash, faint }, all) {
    return {
      label, dash, width: faint ? 1 : 2, alpha: faint ? 0.6 : 1, stroke: () => this.#colour(colour),
      gaps: (plot, i) => breaks(plot.data[i], this.#content.stages).map((pair) => pair.map((at) => plot.valToPos(plot.data[0][at], "x", true))),
      points: { fill: () => this.#colour(colour), show: (plot, i) => all || (!faint && plot.data[i].filter((value) => value !== null).length < 3) },
      value: (_, value) => figure(value),
    };
  }

  /** The editor scales elements on its canvas, and uPlot takes the pointer's place in unscaled pixels. */
  #unscaled(plot, left, top) {
    const scale = plot.over.getBoundingClientRect().width / plot.over.offsetWidth || 1;
    return [left / scale, top / scale];
  }

  #drawStages(plot) {
    const { x, stages, names } = this.#content;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = this.#colour("--soft");
    ctx.setLineDash([4, 4]);
    ctx.textAlign = "left"; // uPlot leaves its own
    ctx.font = this.#font(0.9 * devicePixelRatio);
    const margin = 4 * devicePixelRatio;
    const starts = x.length ? [0, ...boundaries(stages)] : [];
    const lefts = starts.map((start) => Math.round(plot.valToPos(x[start], "x", true)));
    starts.forEach((start, i) => {
      if (i) this.#dashed(ctx, lefts[i], bbox);
      const name = sayName(names?.[stages[start]] ?? "");
      const fits = ctx.measureText(name).width + 2 * margin < (lefts[i + 1] ?? bbox.left + bbox.width) - lefts[i];
      if (fits) ctx.fillText(name, lefts[i] + margin, bbox.top - 0.4 * this.#em * devicePixelRatio);
    });
    ctx.restore();
  }

  #dashed(ctx, left, { top, height }) {
    ctx.beginPath();
    ctx.moveTo(left, top);
    ctx.lineTo(left, top + height);
    ctx.stroke();
  }
}

define("fewstep-chart", Chart);
