"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { factors, figures, sets, runs } = data;
  const figure = Object.fromEntries(figures.map((one) => [one.key, one]));
  const element = (id) => document.getElementById(id);
  const NUMBER = "[-\u2212+]?(?:\\d+\\.?\\d*|\\.\\d+)(?:[eE][-+]?\\d+)?";
  const LARGEST_CHOICE = 20;

  // ----------------------------------------------------------------------------------- helpers

  // Formatters are cached by their decimals, because creating one is slower than using it.
  const formats = [0, 1, 2].map((decimals) => new Intl.NumberFormat("en-US", {
    minimumFractionDigits: decimals, maximumFractionDigits: decimals,
  }));
  const number = (value, decimals = 2) => {
    if (value === null || value === undefined) return "\u2013";
    const text = formats[decimals].format(value);
    return text.replace(/^-(?=[0.,]*$)/, "").replace("-", "\u2212");
  };
  const withUnit = (one) => (one.unit ? `${one.name} (${one.unit})` : one.name);
  const tag = (name, text = "", kind = "") => {
    const node = document.createElement(name);
    node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  // Tabulator accepts titles as HTML only.
  const escaped = (text) => {
    const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
    return String(text).replace(/[&<>"']/g, (sign) => entities[sign]);
  };

  // As in csv_cells.py, text that a spreadsheet would evaluate as a formula is preceded by a quote.
  const FORMULA = /^'*(?:[\t\r\n]|\s*[-=+@\uFF0B\uFF0D\uFF1D\uFF20])/;
  const PLAIN = /^'*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$/;
  const protect = (text) => (FORMULA.test(text) && !PLAIN.test(text) ? `'${text}` : text);

  // ---------------------------------------------------------------------------------------- table

  const rows = runs.map((run, id) => ({
    id,
    name: run.name,
    state: run.state,
    set: run.set === null ? "" : sets[run.set],
    ...Object.fromEntries(run.levels.map((level, index) => [`f${index}`, level])),
    ...run.figures,
  }));

  // A plain select element, because Tabulator's list interprets its texts as HTML.
  const selectFilter = (name, levels) => (cell, rendered, success) => {
    const select = tag("select");
    select.setAttribute("aria-label", `Filter by ${name}`);
    select.append(new Option("all", "all"), ...levels.map((level) => new Option(level, `=${level}`)));
    select.addEventListener("change", () => success(select.value === "all" ? "" : select.value));
    return select;
  };
  const inputFilter = (name) => (cell, rendered, success) => {
    const input = tag("input");
    input.setAttribute("aria-label", `Filter by ${name}`);
    let timer;
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => success(input.value), 150);
    });
    return input;
  };
  const equal = (filter, level) => `=${level}` === filter;
  const contains = (filter, level) => String(level).toLowerCase().includes(filter.toLowerCase());

  const toNumber = (text) => Number(text.replace("\u2212", "-"));
  const within = (filter, value) => {
    const text = filter.trim();
    const range = text.match(new RegExp(`^(${NUMBER})\\s*\\.\\.\\s*(${NUMBER})$`));
    const bound = text.match(new RegExp(`^(<=|>=|<|>|=)?\\s*(${NUMBER})$`));
    // An incomplete expression filters nothing.
    if (!range && !bound) return true;
    if (value === null || value === undefined) return false;
    if (range) return value >= toNumber(range[1]) && value <= toNumber(range[2]);
    const limit = toNumber(bound[2]);
    const tests = {
      "<": value < limit, "<=": value <= limit, ">": value > limit, "=": value === limit,
    };
    return tests[bound[1]] ?? value >= limit;
  };

  const levelFilter = (name, levels) =>
    levels.length <= LARGEST_CHOICE
      ? { headerFilter: selectFilter(name, levels), headerFilterFunc: equal }
      : { headerFilter: inputFilter(name), headerFilterPlaceholder: "contains", headerFilterFunc: contains };
  // Sorts by level: numbers by size, others in order of appearance.
  const byLevel = (levels) => {
    const positions = new Map(levels.map((level, index) => [level, index]));
    return (a, b) => (positions.get(a) ?? levels.length) - (positions.get(b) ?? levels.length);
  };
  // Tabulator measures only the visible rows, so widths are computed from all texts.
  const columnWidth = (title, texts, most = 240) => {
    const longest = (parts) => Math.max(0, ...parts.map((part) => part.length));
    return Math.min(most, Math.max(76, 26 + 8 * longest(texts), 46 + 8.6 * longest(title.split(" "))));
  };
  const column = (title, field, more, unit = "") => ({
    title: escaped(title) + (unit && `<small>${escaped(unit)}</small>`), titleDownload: protect(title), field,
    accessorDownload: (value) => (typeof value === "string" ? protect(value) : value),
    headerSortTristate: false, ...more,
  });

  const link = (cell) => {
    const run = runs[cell.getData().id];
    if (!run.report) return tag("span", run.name);
    const anchor = tag("a", run.name);
    anchor.href = run.report;
    return anchor;
  };
  const metricColumn = (one) =>
    column(one.name, one.key, {
      formatter: (cell) => tag("span", number(cell.getValue(), one.decimals)),
      sorter: "number", sorterParams: { alignEmptyValues: "bottom" },
      headerSortStartingDir: "desc", hozAlign: "right", headerHozAlign: "right",
      minWidth: columnWidth(one.name, rows.map((row) => number(row[one.key], one.decimals))),
      headerFilter: inputFilter(one.name), headerFilterPlaceholder: "\u2265", headerFilterFunc: within,
    }, one.unit === "nats per datum" ? "nats" : one.unit);
  const count = new Set(runs.map((run) => run.state)).size;
  const columns = [
    column("Run", "name", {
      formatter: link, headerFilter: inputFilter("Run"), headerFilterPlaceholder: "contains", headerFilterFunc: contains,
      frozen: window.innerWidth > 700, minWidth: columnWidth("Run", runs.map((run) => run.name)),
    }),
    ...(figure.log_evidence ? [metricColumn(figure.log_evidence)] : []),
    column("State", "state", {
      formatter: (cell) => tag("span", cell.getValue(), `state ${cell.getValue().replace(" ", "-")}`),
      ...levelFilter("State", [...new Set(runs.map((run) => run.state))]), minWidth: 112, visible: count > 1,
    }),
    column("Comparable set", "set", {
      formatter: (cell) => tag("span", cell.getValue()), ...levelFilter("Comparable set", sets),
      sorter: byLevel(sets), minWidth: columnWidth("Comparable", sets), visible: sets.length > 1,
    }),
    ...factors.map((factor, index) =>
      column(factor.name, `f${index}`, {
        formatter: (cell) => tag("span", cell.getValue()),
        sorter: byLevel(factor.levels), ...levelFilter(factor.name, factor.levels), minWidth: columnWidth(factor.name, factor.levels),
        headerTooltip: escaped(factor.key),
      })),
    ...figures.filter((one) => one.key !== "log_evidence").map(metricColumn),
  ];

  element("application").hidden = false;
  const table = new Tabulator("#table", {
    data: rows,
    columns,
    layout: "fitColumns",
    maxHeight: "34rem",
    // The last entry has the highest priority.
    initialSort: [
      ...(figure.log_evidence ? [{ column: "log_evidence", dir: "desc" }] : []),
      ...(sets.length > 1 ? [{ column: "set", dir: "asc" }] : []),
    ],
    placeholder: "No run matches the filters",
    columnDefaults: { resizable: false },
  });

  // ---------------------------------------------------------------------------------------- plots

  const style = () => {
    const css = getComputedStyle(document.documentElement);
    const of = (name) => css.getPropertyValue(name).trim();
    return { ink: of("--ink"), soft: of("--soft"), line: of("--line"), card: of("--card"), accent: of("--accent") };
  };
  const DISTINCT = [
    "#2c6fbb", "#d9722b", "#2a9d6f", "#b5478f", "#c2a317", "#5a5fcf", "#c44545", "#3aa6b9", "#7a8b3a", "#8a6a54",
  ];
  const SEQUENCE = [[104, 92, 200], [52, 122, 178], [38, 155, 140], [110, 195, 90], [225, 195, 50]];
  const blend = (share) => {
    const position = share * (SEQUENCE.length - 1);
    const low = Math.min(Math.floor(position), SEQUENCE.length - 2);
    const mix = SEQUENCE[low].map((part, c) => Math.round(part + (position - low) * (SEQUENCE[low + 1][c] - part)));
    return `rgb(${mix.join(",")})`;
  };
  const colour = (factor, index) => {
    if (!factor) return DISTINCT[0];
    const many = factor.levels.length;
    if (factor.numbers && many > 2) return blend(index / (many - 1));
    return many <= DISTINCT.length ? DISTINCT[index] : blend(index / (many - 1));
  };

  const charts = Object.fromEntries(
    ["plane", "strip", "parallel"].map((id) => [id, echarts.init(element(id), null, { renderer: "canvas" })]));
  const ANY = { name: "all runs", key: "", levels: ["all"], numbers: false };
  const view = { set: 0, factor: data.start, shown: new Set(), brushed: null };
  const currentFactor = () => factors[view.factor] ?? ANY;
  const levelOf = (run) => runs[run].levels[view.factor] ?? "all";
  const hasMetrics = (id) =>
    ["log_evidence", "rate", "distortion"].every((key) => typeof runs[id].figures[key] === "number");
  const members = () => runs.map((_, id) => id).filter((id) => runs[id].set === view.set && hasMetrics(id));
  const visible = () => members().filter((id) => view.shown.has(id));

  const tooltip = (id) => {
    const box = tag("div", "", "tip");
    box.append(tag("strong", runs[id].name));
    factors.forEach((factor, index) => box.append(tag("div", `${factor.name}: ${runs[id].levels[index]}`)));
    for (const key of ["log_evidence", "elbo", "rate", "distortion"]) {
      box.append(tag("div", `${figure[key]?.name ?? key}: ${number(runs[id].figures[key])}`));
    }
    return box;
  };
  const base = (look) => ({
    animation: false,
    textStyle: { color: look.ink, fontFamily: "system-ui, sans-serif" },
    tooltip: {
      trigger: "item", confine: true, backgroundColor: look.card, borderColor: look.line,
      textStyle: { color: look.ink },
      formatter: (event) => (event.data && event.data.id !== undefined ? tooltip(event.data.id) : ""),
    },
  });
  const axis = (look, name, more) => ({
    name, nameLocation: "middle", nameGap: 34, nameTextStyle: { color: look.soft },
    axisLine: { show: true, onZero: false, lineStyle: { color: look.line } },
    axisTick: { lineStyle: { color: look.line } },
    axisLabel: { color: look.soft, hideOverlap: true },
    splitLine: { lineStyle: { color: look.line, opacity: 0.6 } },
    ...more,
  });
  // Searches sample numbers with many digits; tables and tooltips show all of them.
  const brief = (level) =>
    level.length > 8 && level.includes(".") && Number.isFinite(Number(level))
      ? String(Number(Number(level).toPrecision(4))) : level;
  const minus = (value) => String(Number(value.toPrecision(6))).replace("-", "\u2212");
  const legend = (look, names) => ({
    show: names.length > 1, type: "scroll", top: 0, left: 0, right: 0, data: names, icon: "circle", formatter: brief,
    textStyle: { color: look.soft, width: 150, overflow: "truncate" },
    pageTextStyle: { color: look.soft }, pageIconColor: look.accent, pageIconInactiveColor: look.line,
    itemWidth: 10, itemHeight: 10,
  });

  // Returns axis limits and a tick interval at round numbers.
  const step = (width, parts) => {
    const rough = width / parts;
    const unit = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
  };
  const limits = (values, parts = 8) => {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const width = high - low || Math.max(1e-3, Math.abs(high) * 0.02);
    const size = step(1.16 * width, parts);
    const round = (value) => Number((value * size).toPrecision(12));
    const least = round(Math.floor((low - 0.08 * width) / size));
    return {
      min: low >= 0 ? Math.max(0, least) : least,
      max: round(Math.ceil((high + 0.08 * width) / size)),
      interval: size,
    };
  };

  const byLevels = (ids) =>
    currentFactor().levels
      .map((level, index) => ({ level, index, ids: ids.filter((id) => levelOf(id) === level) }))
      .filter((one) => one.ids.length);

  // A constant ELBO means a constant rate + distortion: a line of slope -1, clipped to the axes.
  const contours = (x, y) => {
    const size = step(x.max + y.max - x.min - y.min, 7);
    const lines = [];
    for (let k = Math.ceil((x.min + y.min) / size); k * size <= x.max + y.max; k += 1) {
      const total = k * size;
      const left = Math.max(x.min, total - y.max);
      const right = Math.min(x.max, total - y.min);
      if (right - left < 0.04 * (x.max - x.min)) continue;
      const name = `ELBO ${minus(-total)}`;
      lines.push([{ coord: [left, total - left], name }, { coord: [right, total - right] }]);
    }
    return lines;
  };

  const drawPlane = (ids, look) => {
    const x = limits(ids.map((id) => runs[id].figures.rate));
    const y = limits(ids.map((id) => runs[id].figures.distortion));
    const groups = byLevels(ids);
    charts.plane.setOption({
      ...base(look),
      legend: legend(look, groups.map((one) => one.level)),
      grid: { left: 62, right: 18, top: groups.length > 1 ? 38 : 14, bottom: 52 },
      xAxis: axis(look, "Rate (nats per datum)", { type: "value", ...x, axisLabel: { color: look.soft, formatter: minus } }),
      yAxis: axis(look, "Distortion (nats per datum)", { type: "value", ...y, nameGap: 44, axisLabel: { color: look.soft, formatter: minus } }),
      series: [
        ...groups.map((one) => ({
          type: "scatter", name: one.level, symbolSize: ids.length > 150 ? 7 : 10,
          itemStyle: { color: colour(currentFactor(), one.index), opacity: 0.85, borderColor: look.card, borderWidth: 0.8 },
          data: one.ids.map((id) => ({ id, value: [runs[id].figures.rate, runs[id].figures.distortion] })),
        })),
        {
          type: "scatter", data: [], silent: true,
          markLine: {
            silent: true, symbol: "none", z: 1,
            lineStyle: { color: look.soft, type: [4, 4], width: 1, opacity: 0.55 },
            label: { formatter: "{b}", position: "insideStartTop", color: look.soft, fontSize: 12 },
            data: contours(x, y),
          },
        },
      ],
    }, { notMerge: true });
  };

  // Averages within each seed first, because values of one seed are not independent.
  const overSeeds = (ids) => {
    const seeds = new Map();
    for (const id of ids) {
      const list = seeds.get(runs[id].seed) ?? [];
      seeds.set(runs[id].seed, [...list, runs[id].figures.log_evidence]);
    }
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    const values = [...seeds.values()].map((list) => sum(list) / list.length);
    const mean = sum(values) / values.length;
    if (values.length < 2) return { mean, error: null };
    const variance = sum(values.map((value) => (value - mean) ** 2)) / (values.length - 1);
    return { mean, error: Math.sqrt(variance / values.length) };
  };

  const drawStrip = (ids, look) => {
    const groups = byLevels(ids);
    const means = groups.map((one) => overSeeds(one.ids));
    const jitter = (id) => 0.44 * (((id * 0.618034) % 1) - 0.5);
    const rotated = groups.length > 5 || groups.some((one) => brief(one.level).length > 14);
    charts.strip.setOption({
      ...base(look),
      grid: { left: 70, right: 14, top: 14, bottom: rotated ? 106 : 52 },
      xAxis: axis(look, currentFactor().name, {
        type: "value", min: -0.5, max: groups.length - 0.5, nameGap: rotated ? 84 : 34,
        axisTick: { show: false }, splitLine: { show: false },
        axisLabel: {
          color: look.soft, customValues: groups.map((_, index) => index), rotate: rotated ? 35 : 0,
          width: 110, overflow: "truncate", formatter: (index) => brief(groups[index]?.level ?? ""),
        },
      }),
      yAxis: axis(look, "Log evidence (nats per datum)", {
        type: "value", ...limits(ids.map((id) => runs[id].figures.log_evidence)), nameGap: 50,
        axisLabel: { color: look.soft, formatter: minus },
      }),
      series: [
        {
          type: "scatter", symbolSize: ids.length > 150 ? 5 : 8,
          data: groups.flatMap((one, index) => one.ids.map((id) => ({
            id, value: [index + jitter(id), runs[id].figures.log_evidence],
            itemStyle: { color: colour(currentFactor(), one.index), opacity: 0.6 },
          }))),
        },
        {
          type: "custom", silent: true, z: 4,
          data: means.map(({ mean, error }, index) => [index, mean, error ?? 0]),
          renderItem: (_, api) => {
            const [index, mean, error] = [0, 1, 2].map((c) => api.value(c));
            const [x, high] = api.coord([index, mean + error]);
            const low = api.coord([index, mean - error])[1];
            const lineWidth = 2;
            const line = (x1, y1, x2, y2) => ({
              type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: look.ink, lineWidth },
            });
            const ends = error ? [line(x, low, x, high), line(x - 6, low, x + 6, low), line(x - 6, high, x + 6, high)] : [];
            return { type: "group", children: ends };
          },
        },
        {
          type: "scatter", symbol: "diamond", symbolSize: 13, silent: true, z: 5,
          itemStyle: { color: look.ink, borderColor: look.card, borderWidth: 1.5 },
          data: means.map(({ mean }, index) => [index, mean]),
        },
      ],
    }, { notMerge: true });
  };

  const MEASURED = ["log_evidence", "rate", "distortion"];
  const varying = (ids) =>
    factors.map((_, index) => index).filter((index) => new Set(ids.map((id) => runs[id].levels[index])).size > 1);
  const parallelLines = () => {
    const ids = members();
    const indices = varying(ids);
    const width = ids.length > 100 ? 1 : 1.6;
    return ids.map((id) => ({
      id,
      value: [...indices.map((index) => runs[id].levels[index]), ...MEASURED.map((key) => runs[id].figures[key])],
      lineStyle: {
        color: colour(currentFactor(), Math.max(0, currentFactor().levels.indexOf(levelOf(id)))),
        width,
        opacity: view.shown.has(id) || view.brushed ? 0.55 : 0.04,
      },
    }));
  };

  const drawParallel = (look) => {
    const ids = members();
    const indices = varying(ids);
    const shared = {
      nameTextStyle: { color: look.ink, width: 110, overflow: "truncate" },
      axisLine: { lineStyle: { color: look.soft } }, axisTick: { alignWithLabel: true, lineStyle: { color: look.soft } },
      axisLabel: {
        color: look.ink, width: 110, overflow: "truncate", textBorderColor: look.card, textBorderWidth: 3,
      },
      areaSelectStyle: { width: 18, color: look.accent, opacity: 0.25, borderColor: look.accent },
    };
    const categories = (index) =>
      factors[index].levels.filter((level) => ids.some((id) => runs[id].levels[index] === level));
    charts.parallel.setOption({
      ...base(look),
      parallel: { left: 52, right: 74, top: 46, bottom: 22, parallelAxisDefault: shared },
      parallelAxis: [
        ...indices.map((index, dim) => ({
          dim, name: factors[index].name, type: "category", data: categories(index), ...shared,
          axisLabel: { ...shared.axisLabel, formatter: brief },
        })),
        ...MEASURED.map((key, offset) => ({
          dim: indices.length + offset, name: figure[key].name, type: "value", scale: true, ...shared,
          axisLabel: { ...shared.axisLabel, formatter: minus },
        })),
      ],
      series: [{
        type: "parallel", data: parallelLines(), inactiveOpacity: 0.04, activeOpacity: 0.7, smooth: false,
        emphasis: { lineStyle: { width: 3, opacity: 1 } },
      }],
    }, { notMerge: true });
  };

  const draw = (whole) => {
    const look = style();
    const ids = visible();
    element("empty").hidden = ids.length > 0;
    if (ids.length) {
      drawPlane(ids, look);
      drawStrip(ids, look);
    } else {
      charts.plane.clear();
      charts.strip.clear();
    }
    if (!members().length) charts.parallel.clear();
    else if (whole) drawParallel(look);
    else charts.parallel.setOption({ series: [{ data: parallelLines() }] });
  };

  // -------------------------------------------------------------------------------------- linking

  const clearBrush = () => {
    if (!view.brushed) return;
    view.brushed = null;
    table.clearFilter();
  };
  const brush = () => {
    const series = charts.parallel.getModel().getSeries()[0];
    if (!series) return;
    const active = series.getRawIndicesByActiveState("active");
    const ids = members();
    if (!active.length && !series.getRawIndicesByActiveState("inactive").length) return clearBrush();
    view.brushed = new Set(active.map((index) => ids[index]));
    table.setFilter((row) => view.brushed.has(row.id));
  };
  let frame = 0;
  charts.parallel.on("axisareaselected", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(brush);
  });

  const show = (id) => {
    const run = runs[id];
    const panel = element("detail");
    const title = tag("h3", run.name);
    if (run.report) {
      const anchor = tag("a", "Open the report");
      anchor.href = run.report;
      title.append(" \u00b7 ", anchor);
    }
    const list = tag("dl");
    const add = (name, text) => {
      const pair = tag("div");
      pair.append(tag("dt", name), tag("dd", text));
      list.append(pair);
    };
    factors.forEach((factor, index) => add(factor.name, run.levels[index]));
    figures.forEach((one) => add(withUnit(one), number(run.figures[one.key], one.decimals)));
    panel.replaceChildren(title, list);
    panel.hidden = false;
    panel.scrollIntoView({ block: "nearest" });
    table.getRows().forEach((row) => row.getElement().classList.toggle("chosen", row.getData().id === id));
  };
  Object.values(charts).forEach((chart) =>
    chart.on("click", (event) => event.data && event.data.id !== undefined && show(event.data.id)));

  const fill = (select, names) => select.replaceChildren(...names.map((name, index) => new Option(name, index)));
  fill(element("set"), sets);
  fill(element("factor"), factors.map((factor) => factor.name));
  element("set-choice").hidden = sets.length < 2;
  element("factor-choice").hidden = !factors.length;
  element("factor").value = String(view.factor);
  element("set").addEventListener("change", (event) => {
    view.set = Number(event.target.value);
    clearBrush();
    draw(true);
  });
  element("factor").addEventListener("change", (event) => {
    view.factor = Number(event.target.value);
    clearBrush();
    draw(true);
  });
  element("clear").addEventListener("click", () => {
    view.brushed = null;
    table.clearFilter(true);
    document.querySelectorAll("#table select").forEach((select) => { select.value = "all"; });
    document.querySelectorAll("#table input").forEach((input) => { input.value = ""; });
    draw(true);
  });
  element("download").addEventListener("click", () => table.download("csv", "runs.csv"));

  const showCount = (number) => {
    element("count").textContent = `${number.toLocaleString("en-US")} of ${runs.length.toLocaleString("en-US")} runs shown`;
  };
  let pending = 0;
  table.on("dataFiltered", (_, passing) => {
    view.shown = new Set(passing.map((row) => row.getData().id));
    showCount(passing.length);
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => draw(false));
  });
  table.on("tableBuilt", () => {
    cancelAnimationFrame(pending);
    view.shown = new Set(table.getRows("active").map((row) => row.getData().id));
    showCount(view.shown.size);
    element("plots").hidden = !sets.length;
    draw(true);
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  });
  new ResizeObserver(() => Object.values(charts).forEach((chart) => chart.resize())).observe(element("plots"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
})();
