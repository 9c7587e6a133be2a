// Landscapes that can be turned: a surface on a canvas, painted from the back to the front, with no library.
// For every <canvas class="landscape" data-scene="ID"> the data are in <script type="application/json" id="ID">,
// as analysis/rotatable.py wrote them. Drag or arrow keys turn, wheel with Ctrl, + and - zoom, 0 resets.
"use strict";
(() => {
  const START = { turn: -0.6, tilt: 0.45, zoom: 1 };
  // Viridis at nine places (van der Walt and Smith, CC0), straight lines between them.
  const MAP = [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140],
    [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37]];
  const HEIGHT = 0.85, FLOOR = -0.55, LINES = 5; // of a surface, below it, grid cells between wires

  const colour = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (MAP.length - 1);
    const low = Math.min(Math.floor(at), MAP.length - 2);
    const mixed = MAP[low].map((value, index) => Math.round(value + (at - low) * (MAP[low + 1][index] - value)));
    return `rgb(${mixed.join(",")})`;
  };

  const decoded = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
  };

  const shown = (value) => String(Number(value.toPrecision(2))).replace("-", "\u2212");

  const element = (name, text, parent) => {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  };

  function start(canvas) {
    const data = JSON.parse(document.getElementById(canvas.dataset.scene).textContent);
    const context = canvas.getContext("2d");
    const losses = data.students.map((student) => decoded(student.loss));
    const view = { ...START, student: 0 };
    const span = Math.log(data.high / data.low);
    const share = (loss) => Math.log(Math.max(loss, data.low) / data.low) / span;
    let waiting = false, size = { width: 0, height: 0 };

    const turned = (x, y, z) => { // plane coordinates in [-1, 1], height in [FLOOR, HEIGHT]; depth grows to the reader
      const c = Math.cos(view.turn), s = Math.sin(view.turn);
      const across = c * x - s * y, deep = s * x + c * y;
      const up = z - (HEIGHT + FLOOR) / 2;
      const ct = Math.cos(view.tilt), st = Math.sin(view.tilt);
      return { across, up: up * ct + deep * st, depth: up * st - deep * ct };
    };
    const place = (x, y, z) => {
      const point = turned(x, y, z);
      const unit = view.zoom * Math.min((size.width - 90) / 3.5, size.height * 0.3);
      return { x: (size.width - 60) / 2 + unit * point.across, y: size.height / 2 - unit * point.up, depth: point.depth };
    };
    const path = (points) => {
      context.beginPath();
      points.forEach((point, index) => (index ? context.lineTo(point.x, point.y) : context.moveTo(point.x, point.y)));
    };

    function quads(loss, flat) {
      const n = data.points, found = [], corners = [];
      const at = (i) => (2 * i) / (n - 1) - 1;
      for (let i = 0; i < n; i += 1) {
        for (let j = 0; j < n; j += 1) {
          const value = loss[i * n + j];
          const height = flat ? FLOOR : (HEIGHT * (value - data.low)) / (data.high - data.low);
          corners.push(Number.isNaN(value) ? null : { ...place(at(i), at(j), height), value });
        }
      }
      for (let i = 0; i + 1 < n; i += 1) {
        for (let j = 0; j + 1 < n; j += 1) {
          const four = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]].map(([a, b]) => corners[a * n + b]);
          if (four.includes(null)) continue; // nothing was measured there
          const mean = four.reduce((sum, point) => sum + point.value, 0) / 4;
          const depth = four.reduce((sum, point) => sum + point.depth, 0) / 4;
          found.push({ four, mean, depth, i, j });
        }
      }
      return flat ? found : found.sort((a, b) => a.depth - b.depth);
    }

    function paint(loss, flat) {
      for (const { four, mean, i, j } of quads(loss, flat)) {
        const fill = colour(share(mean));
        path(four);
        context.closePath();
        context.fillStyle = fill;
        context.strokeStyle = fill; // closes the seams between neighbours
        context.lineWidth = 0.7;
        context.fill();
        context.stroke();
        if (flat) continue;
        context.strokeStyle = "rgba(0,0,0,.35)";
        context.lineWidth = 0.6;
        if (i % LINES === 0) { path([four[0], four[3]]); context.stroke(); }
        if (j % LINES === 0) { path([four[0], four[1]]); context.stroke(); }
      }
    }

    function frame(ink, soft) {
      const box = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
      context.strokeStyle = soft;
      context.lineWidth = 1;
      path([...box, box[0]].map(([x, y]) => place(x, y, FLOOR)));
      context.stroke();
      // The upright with the numbers is the one farthest to the right: the surface never hides it.
      const [x, y] = box.reduce((best, one) => (place(...one, 0).x > place(...best, 0).x ? one : best));
      path([place(x, y, FLOOR), place(x, y, HEIGHT)]);
      context.stroke();
      context.fillStyle = ink;
      context.textBaseline = "middle";
      context.textAlign = "left";
      for (const [loss, height] of [[data.low, 0], [data.high, HEIGHT]]) {
        const point = place(x, y, height);
        context.fillText(shown(loss), point.x + 6, point.y);
      }
      context.textAlign = "center";
      const near = Math.cos(view.turn) >= 0 ? -1 : 1, side = Math.sin(view.turn) >= 0 ? -1 : 1;
      for (const value of [-1, 0, 1]) {
        const first = place(value, near * 1.2, FLOOR), second = place(side * 1.2, value, FLOOR);
        context.fillText(value ? shown(value * data.radius) : "direction 1", first.x, first.y);
        context.fillText(value ? shown(value * data.radius) : "direction 2", second.x, second.y);
      }
    }

    function legend(ink) {
      const left = size.width - 52, top = size.height * 0.15, tall = size.height * 0.7, steps = 64;
      for (let step = 0; step < steps; step += 1) {
        context.fillStyle = colour(1 - step / (steps - 1));
        context.fillRect(left, top + (tall * step) / steps, 12, tall / steps + 1);
      }
      context.fillStyle = ink;
      context.textAlign = "left";
      context.textBaseline = "middle";
      for (const part of [0, 0.25, 0.5, 0.75, 1]) {
        context.fillText(shown(data.low * Math.exp(span * part)), left + 16, top + tall * (1 - part));
      }
      context.fillText("loss", left, top - 16);
    }

    function draw() {
      waiting = false;
      const ratio = window.devicePixelRatio || 1;
      size = { width: canvas.clientWidth, height: canvas.clientHeight };
      const pixels = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
      if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, size.width, size.height);
      if (!size.width || !size.height) return;
      const style = getComputedStyle(canvas);
      const ink = style.getPropertyValue("--ink").trim() || style.color;
      const soft = style.getPropertyValue("--edge").trim() || style.color;
      context.font = `12px ${style.fontFamily}`;
      context.lineJoin = "round";
      const loss = losses[view.student];
      if (view.tilt < 0) frame(ink, soft); // from below the floor covers the surface
      paint(loss, view.tilt >= 0);
      if (view.tilt >= 0) frame(ink, soft);
      paint(loss, view.tilt < 0);
      legend(ink);
    }
    const redraw = () => {
      if (!waiting) requestAnimationFrame(draw);
      waiting = true;
    };

    const turn = (across, up) => {
      view.turn = (view.turn + across) % (2 * Math.PI);
      view.tilt = Math.min(Math.max(view.tilt + up, -0.2), Math.PI / 2);
      redraw();
    };
    const zoom = (factor) => {
      view.zoom = Math.min(Math.max(view.zoom * factor, 0.4), 4);
      redraw();
    };
    const reset = () => {
      Object.assign(view, START);
      redraw();
    };
    const choose = (index) => {
      view.student = index;
      const student = data.students[index];
      canvas.setAttribute("aria-label", `Loss landscape of ${student.name}: ${student.text}. Arrow keys turn it.`);
      redraw();
    };

    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, event);
      if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      if (pointers.size === 1) {
        turn((event.clientX - before.clientX) * 0.01, (event.clientY - before.clientY) * 0.01);
      } else { // two fingers: their distance
        const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
        const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
        zoom(apart(event) / apart(before));
      }
      pointers.set(event.pointerId, event);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls until the canvas is chosen
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.002));
    }, { passive: false });
    const keys = {
      ArrowLeft: () => turn(-0.1, 0), ArrowRight: () => turn(0.1, 0), ArrowUp: () => turn(0, -0.1), ArrowDown: () => turn(0, 0.1),
      "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15), 0: reset,
    };
    canvas.addEventListener("keydown", (event) => {
      if (!Object.hasOwn(keys, event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      keys[event.key]();
    });

    const bar = document.createElement("p");
    bar.className = "landscape-controls";
    const label = element("label", "Student ", bar);
    const select = element("select", "", label);
    data.students.forEach((student, index) => { element("option", student.name, select).value = String(index); });
    select.addEventListener("change", () => choose(Number(select.value)));
    for (const [text, name, act] of [
      ["+", "Zoom in", () => zoom(1.25)], ["\u2212", "Zoom out", () => zoom(0.8)], ["Reset view", "", reset],
    ]) {
      const button = element("button", text, bar);
      button.type = "button";
      if (name) button.setAttribute("aria-label", name);
      button.addEventListener("click", act);
    }
    element("span", " Drag or use the arrow keys to turn, + and \u2212 to zoom.", bar);

    canvas.hidden = false;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    Object.assign(canvas.style, { display: "block", width: "100%", height: "28rem", touchAction: "pan-y", cursor: "grab" });
    canvas.before(bar);
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    choose(0);
  }

  document.querySelectorAll("canvas.landscape").forEach(start);
})();
