"use strict";
// Live plots of one device. Without this script the page has them as drawn when it was served.
(() => {
  const box = document.getElementById("live-plots");
  if (box === null || typeof uPlot === "undefined") return;
  const device = encodeURIComponent(box.dataset.device);
  const MAX_POINTS = 5000;
  const FACTOR = { error_rate: 100 };
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const draw = (figure, times, values) => {
    const unit = figure.dataset.unit;
    const axis = () => ({ stroke: () => color("--soft"), grid: { stroke: () => color("--line"), width: 1 }, ticks: { show: false } });
    const plot = new uPlot({
      width: Math.max(240, figure.clientWidth - 32), height: 160, legend: { show: false },
      cursor: { y: false },
      tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), "UTC"),
      scales: { y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
      axes: [{ ...axis(), values: (_, splits) => splits.map((at) => new Date(at * 1e3).toISOString().slice(11, 16)) }, { ...axis(), size: 56 }],
      series: [{}, { stroke: () => color("--accent"), width: 1.6, spanGaps: false, points: { show: times.length < 40, size: 4 } }],
    }, [times, values]);
    const text = figure.querySelector("figcaption .value");
    const drawing = figure.querySelector("svg, .empty");
    if (drawing !== null) drawing.remove();
    const place = document.createElement("div");
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${figure.dataset.title}, live`);
    place.append(plot.root);
    figure.append(place);
    new ResizeObserver(() => plot.setSize({ width: Math.max(240, figure.clientWidth - 32), height: 160 })).observe(figure);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw());
    return (at, value) => {
      times.push(at);
      values.push(value);
      if (times.length > MAX_POINTS) { times.shift(); values.shift(); }
      plot.setData([times, values]);
      if (value !== null) text.textContent = `${Number(value.toPrecision(3))} ${unit}`;
    };
  };

  const begin = async () => {
    const answer = await fetch(`/api/v1/devices/${device}/series?since=${box.dataset.since}`);
    if (!answer.ok) return;
    const { points } = await answer.json();
    const read = (point, field) => (point[field] === null ? null : point[field] * (FACTOR[field] ?? 1));
    const add = [...box.querySelectorAll("figure")].map((figure) => {
      const field = figure.dataset.field;
      const push = draw(figure, points.map((point) => point.at), points.map((point) => read(point, field)));
      return (point) => push(point.at, read(point, field));
    });
    const source = new EventSource(`/api/v1/stream?device=${device}`);
    source.addEventListener("sample", (event) => { const point = JSON.parse(event.data); for (const each of add) each(point); });
    source.addEventListener("reset", () => location.reload());
    addEventListener("pagehide", () => source.close());
    box.dataset.live = "yes";
  };
  begin();
})();
