"use strict";
(async () => {
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("map-data").textContent);
  const { view, side, ranges } = data;
  const svg = element("map");

  // ----------------------------------------------------------------------------------- helpers

  const tag = (name, text = "", kind = "") => {
    const node = document.createElement(name);
    node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const shape = (name, attributes, text = "") => {
    const node = document.createElementNS(svg.namespaceURI, name);
    Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
    node.textContent = text;
    return node;
  };
  const number = (value, digits = 3) => String(Number(value.toPrecision(digits))).replace("-", "\u2212");
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // --------------------------------------------------------------------------------------- plane

  const FRAME = [[46, 432], [398, 8]];
  const toPixel = (axis, value) => {
    const [low, high] = ranges[axis];
    const [start, end] = FRAME[axis];
    return start + ((value - low) / (high - low)) * (end - start);
  };
  const toValue = (axis, pixel) => {
    const [low, high] = ranges[axis];
    const [start, end] = FRAME[axis];
    return clamp(low + ((pixel - start) / (end - start)) * (high - low), low, high);
  };
  const pixels = data.x.map((x, row) => [toPixel(0, x), toPixel(1, data.y[row])]);

  const listTicks = ([low, high]) => {
    const rough = (high - low) / 5;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const size = [1, 2, 5, 10].map((factor) => factor * unit).find((one) => one >= rough);
    const first = Math.ceil(low / size);
    return Array.from({ length: Math.floor(high / size) - first + 1 }, (_, k) => (first + k) * size);
  };
  const drawAxes = () => {
    const axes = svg.querySelector(".axes");
    for (const tick of listTicks(ranges[0])) {
      const x = toPixel(0, tick);
      axes.append(
        shape("line", { class: "grid", x1: x, x2: x, y1: FRAME[1][0], y2: FRAME[1][1] }),
        shape("text", { x, y: 414, "text-anchor": "middle" }, number(tick)));
    }
    axes.append(shape("text", { x: 239, y: 432, "text-anchor": "middle" }, data.axes[0]));
    if (!data.axes[1]) return;
    for (const tick of listTicks(ranges[1])) {
      const y = toPixel(1, tick);
      axes.append(
        shape("line", { class: "grid", y1: y, y2: y, x1: FRAME[0][0], x2: FRAME[0][1] }),
        shape("text", { x: 41, y: y + 4, "text-anchor": "end" }, number(tick)));
    }
    axes.append(shape("text", { x: -203, y: 12, transform: "rotate(-90)", "text-anchor": "middle" }, data.axes[1]));
  };
  const drawPoints = () => {
    const r = clamp(60 / Math.sqrt(pixels.length), 2.2, 5);
    svg.querySelector(".points").append(...pixels.map(([cx, cy], row) =>
      shape("circle", { cx, cy, r, fill: data.palette[data.color[row]] })));
    for (const [name, color] of data.legend) {
      const dot = shape("svg", { viewBox: "0 0 2 2" });
      dot.append(shape("circle", { cx: 1, cy: 1, r: 1, fill: data.palette[color] }));
      const item = tag("li");
      item.append(dot, name);
      element("legend").append(item);
    }
  };

  // --------------------------------------------------------------------------------------- views

  // Each form shows a row and, if there is a grid, a weighted mean of decoded points.
  const panel = (kind, title, node, note) => {
    const box = tag("div", "", kind);
    if (title) box.append(tag("h4", title));
    box.append(node);
    if (note) box.append(tag("small", note));
    return box;
  };

  const images = async () => {
    const load = async (sprite) => {
      if (!sprite) return null;
      const image = new Image();
      image.src = sprite.source;
      await image.decode();
      return { image, columns: sprite.columns };
    };
    const draw = (title, { image, columns }, parts, note) => {
      const canvas = tag("canvas");
      canvas.width = view.width;
      canvas.height = view.height;
      const context = canvas.getContext("2d");
      context.globalCompositeOperation = "lighter";
      for (const [index, weight] of parts) {
        context.globalAlpha = weight;
        const left = (index % columns) * view.width;
        const top = Math.floor(index / columns) * view.height;
        context.drawImage(image, left, top, view.width, view.height, 0, 0, view.width, view.height);
      }
      return panel("image", title, canvas, note);
    };
    const [datum, reconstruction, grid] =
      await Promise.all([view.data, view.reconstructions, view.grid].map(load));
    return (row, point) => [
      draw("Datum", datum, [[row, 1]]),
      draw("Reconstruction", reconstruction, [[row, 1]]),
      ...(point ? [draw("Decoded", grid, point.parts, point.place)] : []),
    ];
  };

  const lines = () => {
    const every = [view.data, view.reconstructions, view.grid].flat(2).filter((value) => value !== null);
    const [low, high] = every.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    const place = (values) => values.map((value, step) =>
      value === null ? null : [(100 * (step + 0.5)) / values.length, 96 - (92 * (value - low)) / (high - low || 1)]);
    const plot = (title, fitted, observed, note) => {
      const graph = shape("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none" });
      graph.append(shape("polyline", { points: place(fitted).join(" ") }));
      const dots = place(observed).filter(Boolean).map(([x, y]) => `M${x} ${y}h0`).join("");
      graph.append(shape("path", { d: dots }));
      return panel("lines", title, graph, note);
    };
    const range = `${view.length} values${view.feature && `, the ${view.feature}`}; the axis is from ${number(low)} to ${number(high)}`;
    const average = (parts) => view.grid[0].map((_, step) =>
      parts.reduce((sum, [index, weight]) => sum + weight * view.grid[index][step], 0));
    return (row, point) => [
      plot("Datum (dots) and reconstruction (line)", view.reconstructions[row], view.data[row], range),
      ...(point ? [plot("Decoded", average(point.parts), [], point.place)] : []),
    ];
  };

  const cells = () => {
    const which = view.largest ? "largest" : "first";
    const some = view.total > 12 ? `The ${which} 12 of ${view.total.toLocaleString("en-US")} values` : "";
    const cell = (text) =>
      text === null ? tag("td", "missing", "none") : tag("td", text.replace(/^-/, "\u2212"));
    const table = (title, header, rows, note) => {
      const node = tag("table");
      node.append(tag("thead"), tag("tbody"));
      node.tHead.append(tag("tr"));
      node.tHead.rows[0].append(...["", ...header].map((name) => tag("th", name)));
      for (const [index, ...texts] of rows) {
        const line = tag("tr");
        line.append(tag("th", view.names[index]), ...texts.map(cell));
        node.tBodies[0].append(line);
      }
      const box = tag("div", "", "scroll");
      box.append(node);
      return panel("cells", title, box, note);
    };
    return (row, point) => {
      const header = ["Datum", "Reconstruction"];
      if (!point) return [table("", header, view.rows[row], some)];
      const nearest = view.grid[point.parts.reduce((a, b) => (b[1] > a[1] ? b : a))[0]];
      const place = `Decoded at the grid point nearest to ${point.place.replace("at ", "")}`;
      if (view.largest) {
        return [table("", header, view.rows[row], some), table("", ["Decoded"], nearest, place)];
      }
      const rows = view.rows[row].map((one, index) => [...one, nearest[index][1]]);
      return [table("", [...header, "Decoded"], rows, [some, place].filter(Boolean).join(". "))];
    };
  };

  // ---------------------------------------------------------------------------------------- state

  const show = await { images, lines, cells }[view.kind]();
  const state = { row: 0, place: [data.x[0], data.y[0]] };

  // Returns the decoded points around a point, with the weights of bilinear interpolation.
  const weigh = (place) => {
    const parts = place.map((value, axis) => {
      const [low, high] = ranges[axis];
      const position = ((value - low) / (high - low)) * (side - 1);
      const first = Math.min(Math.floor(position), side - 2);
      return [[first, 1 - (position - first)], [first + 1, position - first]];
    });
    return parts[1].flatMap(([y, a]) => parts[0].map(([x, b]) => [y * side + x, a * b])).filter(([, weight]) => weight > 0);
  };
  const draw = () => {
    const place = `at (${state.place.map((value) => number(value)).join(", ")})`;
    const point = side ? { parts: weigh(state.place), place } : null;
    element("views").replaceChildren(...show(state.row, point));
  };

  const choose = (row) => {
    state.row = row;
    const [cx, cy] = pixels[row];
    const ring = svg.querySelector(".chosen");
    ring.setAttribute("cx", cx);
    ring.setAttribute("cy", cy);
    const facts = [`Row ${data.row[row]}`];
    if (data.label) facts.push(`label ${data.label[row]}`);
    if (data.evidence && data.evidence[row] !== null) {
      facts.push(`log evidence ${number(data.evidence[row], 4)} nats`);
    }
    element("facts").textContent = facts.join(", ");
    draw();
  };
  const decode = (place) => {
    if (!side) return;
    state.place = place.map((value, axis) => clamp(value, ...ranges[axis]));
    const [x, y] = state.place.map((value, axis) => toPixel(axis, value));
    svg.querySelector(".decoded").setAttribute("d", `M${x - 10} ${y}h20M${x} ${y - 10}v20`);
    draw();
  };

  const find = (x, y) => {
    const distances = pixels.map(([cx, cy]) => Math.hypot(cx - x, cy - y));
    const nearest = distances.indexOf(Math.min(...distances));
    return distances[nearest] < 24 ? nearest : null;
  };
  const locate = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = 440 / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const point = (event) => {
    const [x, y] = locate(event);
    const row = find(x, y);
    if (row !== null && row !== state.row) choose(row);
    if (event.buttons) decode([toValue(0, x), toValue(1, y)]);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", (event) => {
    if (side) svg.setPointerCapture(event.pointerId);
    point(event);
  });

  // The nearest point within the quarter of the plane in this direction.
  const step = ([dx, dy]) => {
    const [x, y] = pixels[state.row];
    let best = null;
    let least = Infinity;
    pixels.forEach(([cx, cy], row) => {
      const along = (cx - x) * dx + (cy - y) * dy;
      const across = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
      if (along > 0 && across <= along && along + across < least) [best, least] = [row, along + across];
    });
    if (best !== null) choose(best);
  };
  const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  svg.addEventListener("keydown", (event) => {
    const direction = KEYS[event.key];
    if (!direction) return;
    event.preventDefault();
    if (!event.shiftKey) return step(direction);
    if (side) decode(state.place.map((value, axis) => {
      const size = (ranges[axis][1] - ranges[axis][0]) / (side - 1);
      return value + size * direction[axis] * (axis ? -1 : 1);
    }));
  });

  element("map-section").hidden = false;
  svg.classList.toggle("decodes", side > 0);
  drawAxes();
  drawPoints();
  choose(0);
  decode(state.place);
  document.documentElement.dataset.ready = "";
})();
