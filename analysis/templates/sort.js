// Tables that sort: a button in every column header, by the cell's full-precision value or its text. Rows stay in
// their block (tbody); a third press gives the printed order back.
"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.value;
    return number === undefined ? cell.textContent.trim() : Number(number);
  };
  const order = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // a dash stands behind every number
    return a.localeCompare(b, "en", { numeric: true });
  };

  function sort(table, column, direction, printed) {
    for (const [body, rows] of printed) {
      const sorted = [...rows];
      if (direction !== "none") {
        const sign = direction === "ascending" ? 1 : -1;
        sorted.sort(([a], [b]) => {
          const [left, right] = [value(a, column), value(b, column)];
          return typeof left === typeof right ? sign * order(left, right) : order(left, right);
        });
      }
      for (const group of sorted) body.append(...group);
    }
  }

  // A block's title stays on top; a row of intervals goes with the row above it.
  function groups(body) {
    const found = [];
    for (const row of body.rows) {
      if (row.classList.contains("block")) continue;
      if (row.classList.contains("intervals") && found.length) found[found.length - 1].push(row);
      else found.push([row]);
    }
    return found;
  }

  function prepare(table) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const printed = [...table.tBodies].map((body) => [body, groups(body)]);
    if (!printed.some(([, rows]) => rows.length > 1)) return;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const numeric = printed.some(([, rows]) => rows.some(([row]) => row.cells[column].dataset.value !== undefined));
        const turns = numeric ? ["none", "descending", "ascending"] : ["none", "ascending", "descending"];
        const next = turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", next);
        sort(table, column, next, printed);
      });
    });
  }

  for (const table of document.querySelectorAll("table.sortable, section#tables table")) {
    if (!table.closest("details")) prepare(table);
  }
})();
