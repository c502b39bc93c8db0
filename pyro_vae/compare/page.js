"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { factors, figures, sets, runs } = data;
  const figure = Object.fromEntries(figures.map((one) => [one.key, one]));
  const element = (id) => document.getElementById(id);
  const NUMBER = "[-\u2212+]?(?:\\d+\\.?\\d*|\\.\\d+)(?:[eE][-+]?\\d+)?";
  const LARGEST_CHOICE = 20;

  // ---------------------------------------------------------------------------------------- words

  // One formatter for each number of decimals: making one takes longer than using it.
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
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  // For what Tabulator takes as HTML only: its titles.
  const escaped = (text) => {
    const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
    return String(text).replace(/[&<>"']/g, (sign) => entities[sign]);
  };

  // Like spreadsheet.py: a cell that a spreadsheet would calculate stands behind a quote.
  const FORMULA = /^'*(?:[\t\r\n]|\s*[-=+@\uFF0B\uFF0D\uFF1D\uFF20])/;
  const PLAIN = /^'*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$/;
  const protect = (text) => (FORMULA.test(text) && !PLAIN.test(text) ? `'${text}` : text);

  // ---------------------------------------------------------------------------------------- table

  const rows = runs.map((run, id) => ({
    id,
    name: run.name,
    state: run.state,
    set: run.set === null ? "" : sets[run.set],
    ...Object.fromEntries(run.levels.map((level, place) => [`f${place}`, level])),
    ...run.figures,
  }));

  // A select of its own: the texts of Tabulator's list would be read as HTML.
  const choice = (name, levels) => (cell, rendered, success) => {
    const select = tag("select");
    select.setAttribute("aria-label", `Filter by ${name}`);
    select.append(new Option("all", "all"), ...levels.map((level) => new Option(level, `=${level}`)));
    select.addEventListener("change", () => success(select.value === "all" ? "" : select.value));
    return select;
  };
  const typed = (name) => (cell, rendered, success) => {
    const input = tag("input");
    input.setAttribute("aria-label", `Filter by ${name}`);
    let waiting;
    input.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => success(input.value), 150);
    });
    return input;
  };
  const equal = (wanted, level) => `=${level}` === wanted;
  const contains = (wanted, level) => String(level).toLowerCase().includes(wanted.toLowerCase());

  const toNumber = (text) => Number(text.replace("\u2212", "-"));
  const within = (wanted, value) => {
    const text = wanted.trim();
    const range = text.match(new RegExp(`^(${NUMBER})\\s*\\.\\.\\s*(${NUMBER})$`));
    const bound = text.match(new RegExp(`^(<=|>=|<|>|=)?\\s*(${NUMBER})$`));
    // What is half written filters nothing.
    if (!range && !bound) return true;
    if (value === null || value === undefined) return false;
    if (range) return value >= toNumber(range[1]) && value <= toNumber(range[2]);
    const limit = toNumber(bound[2]);
    const tests = {
      "<": value < limit, "<=": value <= limit, ">": value > limit, "=": value === limit,
    };
    return tests[bound[1]] ?? value >= limit;
  };

  const chooser = (name, levels) =>
    levels.length <= LARGEST_CHOICE
      ? { headerFilter: choice(name, levels), headerFilterFunc: equal }
      : { headerFilter: typed(name), headerFilterPlaceholder: "contains", headerFilterFunc: contains };
  // A sort by level: numbers by size, the others as they appeared.
  const byLevel = (levels) => {
    const place = new Map(levels.map((level, index) => [level, index]));
    return (a, b) => (place.get(a) ?? levels.length) - (place.get(b) ?? levels.length);
  };
  // Tabulator measures no more than the rows in sight.
  const wide = (title, texts, most = 240) => {
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
    const made = tag("a", run.name);
    made.href = run.report;
    return made;
  };
  const measure = (one) =>
    column(one.name, one.key, {
      formatter: (cell) => tag("span", number(cell.getValue(), one.decimals)),
      sorter: "number", sorterParams: { alignEmptyValues: "bottom" },
      headerSortStartingDir: "desc", hozAlign: "right", headerHozAlign: "right",
      minWidth: wide(one.name, rows.map((row) => number(row[one.key], one.decimals))),
      headerFilter: typed(one.name), headerFilterPlaceholder: "\u2265", headerFilterFunc: within,
    }, one.unit === "nats per datum" ? "nats" : one.unit);
  const count = new Set(runs.map((run) => run.state)).size;
  const columns = [
    column("Run", "name", {
      formatter: link, headerFilter: typed("Run"), headerFilterPlaceholder: "contains", headerFilterFunc: contains,
      frozen: window.innerWidth > 700, minWidth: wide("Run", runs.map((run) => run.name)),
    }),
    ...(figure.log_evidence ? [measure(figure.log_evidence)] : []),
    column("State", "state", {
      formatter: (cell) => tag("span", cell.getValue(), `state ${cell.getValue().replace(" ", "-")}`),
      ...chooser("State", [...new Set(runs.map((run) => run.state))]), minWidth: 104, visible: count > 1,
    }),
    column("Comparable set", "set", {
      formatter: (cell) => tag("span", cell.getValue()), ...chooser("Comparable set", sets),
      sorter: byLevel(sets), minWidth: wide("Comparable", sets), visible: sets.length > 1,
    }),
    ...factors.map((factor, place) =>
      column(factor.name, `f${place}`, {
        formatter: (cell) => tag("span", cell.getValue()),
        sorter: byLevel(factor.levels), ...chooser(factor.name, factor.levels), minWidth: wide(factor.name, factor.levels),
        headerTooltip: escaped(factor.key),
      })),
    ...figures.filter((one) => one.key !== "log_evidence").map(measure),
  ];

  element("application").hidden = false;
  const table = new Tabulator("#table", {
    data: rows,
    columns,
    layout: "fitColumns",
    maxHeight: "34rem",
    // The last is the first to be sorted by.
    initialSort: [
      ...(figure.log_evidence ? [{ column: "log_evidence", dir: "desc" }] : []),
      ...(sets.length > 1 ? [{ column: "set", dir: "asc" }] : []),
    ],
    placeholder: "No run passes the filters",
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
    const place = share * (SEQUENCE.length - 1);
    const low = Math.min(Math.floor(place), SEQUENCE.length - 2);
    const mix = SEQUENCE[low].map((part, c) => Math.round(part + (place - low) * (SEQUENCE[low + 1][c] - part)));
    return `rgb(${mix.join(",")})`;
  };
  const colour = (factor, place) => {
    if (!factor) return DISTINCT[0];
    const many = factor.levels.length;
    if (factor.numbers && many > 2) return blend(place / (many - 1));
    return many <= DISTINCT.length ? DISTINCT[place] : blend(place / (many - 1));
  };

  const charts = Object.fromEntries(
    ["plane", "strip", "parallel"].map((id) => [id, echarts.init(element(id), null, { renderer: "canvas" })]));
  const ANY = { name: "all runs", key: "", levels: ["all"], numbers: false };
  const view = { set: 0, factor: factors.findIndex((one) => one.name !== "seed"), shown: new Set(), brushed: null };
  const chosen = () => factors[view.factor] ?? ANY;
  const levelOf = (run) => runs[run].levels[view.factor] ?? "all";
  const complete = (id) =>
    ["log_evidence", "rate", "distortion"].every((key) => typeof runs[id].figures[key] === "number");
  const members = () => runs.map((_, id) => id).filter((id) => runs[id].set === view.set && complete(id));
  const visible = () => members().filter((id) => view.shown.has(id));

  const tooltip = (id) => {
    const made = tag("div", "", "tip");
    made.append(tag("strong", runs[id].name));
    factors.forEach((factor, place) => made.append(tag("div", `${factor.name}: ${runs[id].levels[place]}`)));
    for (const key of ["log_evidence", "elbo", "rate", "distortion"]) {
      made.append(tag("div", `${figure[key]?.name ?? key}: ${number(runs[id].figures[key])}`));
    }
    return made;
  };
  const base = (look) => ({
    animation: false,
    textStyle: { color: look.ink, fontFamily: "system-ui, sans-serif" },
    tooltip: {
      trigger: "item", confine: true, backgroundColor: look.card, borderColor: look.line,
      textStyle: { color: look.ink },
      formatter: (given) => (given.data && given.data.id !== undefined ? tooltip(given.data.id) : ""),
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
  const minus = (value) => String(Number(value.toPrecision(6))).replace("-", "\u2212");
  const legend = (look, names) => ({
    show: names.length > 1, type: "scroll", top: 0, left: 0, right: 0, data: names, icon: "circle",
    textStyle: { color: look.soft, width: 150, overflow: "truncate" },
    pageTextStyle: { color: look.soft }, pageIconColor: look.accent, pageIconInactiveColor: look.line,
    itemWidth: 10, itemHeight: 10,
  });

  // Limits and steps that fall on round numbers.
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
    chosen().levels
      .map((level, place) => ({ level, place, ids: ids.filter((id) => levelOf(id) === level) }))
      .filter((one) => one.ids.length);

  // Where the ELBO is the same, rate + distortion is: a line of slope -1, cut by the frame.
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
          itemStyle: { color: colour(chosen(), one.place), opacity: 0.85, borderColor: look.card, borderWidth: 0.8 },
          data: one.ids.map((id) => ({ id, value: [runs[id].figures.rate, runs[id].figures.distortion] })),
        })),
        {
          type: "scatter", data: [], silent: true,
          markLine: {
            silent: true, symbol: "none", z: 1,
            lineStyle: { color: look.soft, type: [4, 4], width: 1, opacity: 0.55 },
            label: { formatter: "{b}", position: "insideStartTop", color: look.soft, fontSize: 10.5 },
            data: contours(x, y),
          },
        },
      ],
    }, { notMerge: true });
  };

  // Within a seed first, as everywhere: values of one seed are no independent evidence.
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
    const turned = groups.length > 5 || groups.some((one) => one.level.length > 14);
    charts.strip.setOption({
      ...base(look),
      grid: { left: 70, right: 14, top: 14, bottom: turned ? 92 : 52 },
      xAxis: axis(look, chosen().name, {
        type: "value", min: -0.5, max: groups.length - 0.5, nameGap: turned ? 70 : 34,
        axisTick: { show: false }, splitLine: { show: false },
        axisLabel: {
          color: look.soft, customValues: groups.map((_, place) => place), rotate: turned ? 35 : 0,
          width: 110, overflow: "truncate", formatter: (place) => groups[place]?.level ?? "",
        },
      }),
      yAxis: axis(look, "Log evidence (nats per datum)", {
        type: "value", ...limits(ids.map((id) => runs[id].figures.log_evidence)), nameGap: 50,
        axisLabel: { color: look.soft, formatter: minus },
      }),
      series: [
        {
          type: "scatter", symbolSize: ids.length > 150 ? 5 : 8,
          data: groups.flatMap((one, place) => one.ids.map((id) => ({
            id, value: [place + jitter(id), runs[id].figures.log_evidence],
            itemStyle: { color: colour(chosen(), one.place), opacity: 0.6 },
          }))),
        },
        {
          type: "custom", silent: true, z: 4,
          data: means.map(({ mean, error }, place) => [place, mean, error ?? 0]),
          renderItem: (_, api) => {
            const [place, mean, error] = [0, 1, 2].map((c) => api.value(c));
            const [x, high] = api.coord([place, mean + error]);
            const low = api.coord([place, mean - error])[1];
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
          data: means.map(({ mean }, place) => [place, mean]),
        },
      ],
    }, { notMerge: true });
  };

  const MEASURED = ["log_evidence", "rate", "distortion"];
  const varying = (ids) =>
    factors.map((_, place) => place).filter((place) => new Set(ids.map((id) => runs[id].levels[place])).size > 1);
  const parallelLines = () => {
    const ids = members();
    const places = varying(ids);
    const width = ids.length > 100 ? 1 : 1.6;
    return ids.map((id) => ({
      id,
      value: [...places.map((place) => runs[id].levels[place]), ...MEASURED.map((key) => runs[id].figures[key])],
      lineStyle: {
        color: colour(chosen(), Math.max(0, chosen().levels.indexOf(levelOf(id)))),
        width,
        opacity: view.shown.has(id) || view.brushed ? 0.55 : 0.04,
      },
    }));
  };

  const drawParallel = (look) => {
    const ids = members();
    const places = varying(ids);
    const shared = {
      nameTextStyle: { color: look.ink, width: 110, overflow: "truncate" },
      axisLine: { lineStyle: { color: look.soft } }, axisTick: { alignWithLabel: true, lineStyle: { color: look.soft } },
      axisLabel: {
        color: look.ink, width: 110, overflow: "truncate", textBorderColor: look.card, textBorderWidth: 3,
      },
      areaSelectStyle: { width: 18, color: look.accent, opacity: 0.25, borderColor: look.accent },
    };
    const categories = (place) =>
      factors[place].levels.filter((level) => ids.some((id) => runs[id].levels[place] === level));
    charts.parallel.setOption({
      ...base(look),
      parallel: { left: 52, right: 74, top: 46, bottom: 22, parallelAxisDefault: shared },
      parallelAxis: [
        ...places.map((place, dim) => ({
          dim, name: factors[place].name, type: "category", data: categories(place), ...shared,
        })),
        ...MEASURED.map((key, offset) => ({
          dim: places.length + offset, name: figure[key].name, type: "value", scale: true, ...shared,
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

  const letGo = () => {
    if (!view.brushed) return;
    view.brushed = null;
    table.clearFilter();
  };
  const brush = () => {
    const series = charts.parallel.getModel().getSeries()[0];
    if (!series) return;
    const active = series.getRawIndicesByActiveState("active");
    const ids = members();
    if (!active.length && !series.getRawIndicesByActiveState("inactive").length) return letGo();
    view.brushed = new Set(active.map((index) => ids[index]));
    table.setFilter((row) => view.brushed.has(row.id));
  };
  let waiting = 0;
  charts.parallel.on("axisareaselected", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(brush);
  });

  const show = (id) => {
    const run = runs[id];
    const panel = element("detail");
    const title = tag("h3", run.name);
    if (run.report) {
      const made = tag("a", "Open its report");
      made.href = run.report;
      title.append(" \u00b7 ", made);
    }
    const list = tag("dl");
    const add = (name, text) => {
      const pair = tag("div");
      pair.append(tag("dt", name), tag("dd", text));
      list.append(pair);
    };
    factors.forEach((factor, place) => add(factor.name, run.levels[place]));
    figures.forEach((one) => add(withUnit(one), number(run.figures[one.key], one.decimals)));
    panel.replaceChildren(title, list);
    panel.hidden = false;
    table.getRows().forEach((row) => row.getElement().classList.toggle("chosen", row.getData().id === id));
  };
  Object.values(charts).forEach((chart) =>
    chart.on("click", (given) => given.data && given.data.id !== undefined && show(given.data.id)));

  const fill = (select, names) => select.replaceChildren(...names.map((name, place) => new Option(name, place)));
  fill(element("set"), sets);
  fill(element("factor"), factors.map((factor) => factor.name));
  element("set-choice").hidden = sets.length < 2;
  element("factor-choice").hidden = !factors.length;
  element("factor").value = String(view.factor = Math.max(0, view.factor));
  element("set").addEventListener("change", (event) => {
    view.set = Number(event.target.value);
    letGo();
    draw(true);
  });
  element("factor").addEventListener("change", (event) => {
    view.factor = Number(event.target.value);
    letGo();
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

  const counted = (number) => {
    element("count").textContent = `${number.toLocaleString("en-US")} of ${runs.length.toLocaleString("en-US")} runs shown`;
  };
  let pending = 0;
  table.on("dataFiltered", (_, passing) => {
    view.shown = new Set(passing.map((row) => row.getData().id));
    counted(passing.length);
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => draw(false));
  });
  table.on("tableBuilt", () => {
    cancelAnimationFrame(pending);
    view.shown = new Set(table.getRows("active").map((row) => row.getData().id));
    counted(view.shown.size);
    element("plots").hidden = !sets.length;
    draw(true);
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  });
  new ResizeObserver(() => Object.values(charts).forEach((chart) => chart.resize())).observe(element("plots"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
})();
