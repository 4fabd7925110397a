"use strict";
// Sorts a table by the column whose head is pressed: numbers by value, others by text.
function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return { text, number };
}
function sortBy(table, column, head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = Array.from(table.tBodies[0].rows);
  const keyed = rows.map((row, place) => ({ row, place, ...valueOf(row, column) }));
  const numeric = keyed.every((k) => !Number.isNaN(k.number) || /^[–-]?$/.test(k.text));
  keyed.sort((a, b) => {
    let order;
    if (numeric) {
      // What has no number stands last, whichever way the others go.
      if (Number.isNaN(a.number) || Number.isNaN(b.number))
        return Number.isNaN(a.number) - Number.isNaN(b.number) || a.place - b.place;
      order = a.number - b.number;
    } else order = a.text.localeCompare(b.text);
    return (descending ? -order : order) || a.place - b.place;
  });
  for (const { row } of keyed) table.tBodies[0].append(row);
}
for (const table of document.querySelectorAll("table")) {
  if (!table.tHead) continue;
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.title = "Sort by this column";
    head.append(button);
    button.addEventListener("click", () => sortBy(table, column, head));
  });
}
// A link to a claim opens it; printing opens all.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
