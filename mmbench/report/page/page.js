"use strict";
// Tables that sort and filter. Without this script they are plain tables.

// -- sorting --------------------------------------------------------------------------------------

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function value(row, index, isNumber) {
  const cell = row.cells[index];
  if (isNumber) {
    const number = parseFloat(cell.dataset.value);
    return Number.isNaN(number) ? null : number;
  }
  return cell.textContent.trim() || null;
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}

// Rows without a value stay at the end in either direction; equal rows keep the table's order.
function sorted(rows, index, isNumber, direction) {
  if (direction === "none") return rows;
  const sign = direction === "ascending" ? 1 : -1;
  return rows.map((row) => [value(row, index, isNumber), row]).sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * compare(a, b);
  }).map(([, row]) => row);
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  if (original.length < 2) return;
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const direction = NEXT[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", direction);
      body.append(...sorted(original, index, head.dataset.type === "number", direction));
    });
  });
}

// -- filtering ------------------------------------------------------------------------------------

function labelled(text, control) {
  const label = document.createElement("label");
  label.append(`${text} `, control);
  return label;
}

function choice(name, options) {
  const select = document.createElement("select");
  select.name = name;
  select.append(...options.map(([key, text]) => new Option(text, key)));
  return select;
}

function verdictsOf(rows) {
  const found = rows.map((row) => row.querySelector('[data-column="verdict"]')?.dataset.value);
  return [...new Set(found.filter(Boolean))].sort();
}

// One set of controls for all tables of a section: a row is hidden in each of them.
function makeFilter(section) {
  const bar = section.querySelector(".toolbar");
  const first = section.querySelector("table.rows");
  const rows = first ? [...first.tBodies[0].rows] : [];
  if (rows.length < 2) return;

  const search = document.createElement("input");
  search.type = "search";
  search.name = "name";
  const kinds = choice("kind", [["", "all"], ["false", "methods"], ["true", "controls"]]);
  const verdicts = choice("verdict", [["", "any"], ...verdictsOf(rows).map((v) => [v, v])]);
  const count = document.createElement("output");
  bar.append(labelled("Name contains", search), labelled("Show", kinds));
  if (verdicts.options.length > 1) bar.append(labelled("Verdict", verdicts));
  bar.append(count);
  bar.hidden = false;

  const everywhere = [...section.querySelectorAll("tr[data-label]")];
  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    const kept = rows.filter((row) => {
      const verdict = row.querySelector('[data-column="verdict"]')?.dataset.value ?? "";
      return row.dataset.label.toLowerCase().includes(wanted)
        && (!kinds.value || row.dataset.control === kinds.value)
        && (!verdicts.value || verdict === verdicts.value);
    });
    const labels = new Set(kept.map((row) => row.dataset.label));
    everywhere.forEach((row) => { row.hidden = !labels.has(row.dataset.label); });
    count.textContent = `${kept.length} of ${rows.length} rows`;
  };
  bar.addEventListener("input", apply);
  apply();
}

// -- printing -------------------------------------------------------------------------------------

// Closed parts are printed too.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((part) => { part.open = true; });
});
window.addEventListener("afterprint", () => {
  closed.forEach((part) => { part.open = false; });
});

document.querySelectorAll("table:not(.still)").forEach(makeSortable);
document.querySelectorAll("section.dataset").forEach(makeFilter);
