"use strict";
// Sorting and filtering only: without this script the page shows everything.
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const column = header.cellIndex;
    const table = header.closest("table");
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [row.cells[column].dataset.value ?? row.cells[column].textContent, row]);
    const numeric = header.dataset.kind === "number";
    const rank = (text) => (text === "" ? Infinity : Number(text));
    keyed.sort(([a], [b]) => {
      if (!numeric) return (descending ? -1 : 1) * a.localeCompare(b, undefined, { numeric: true });
      const [x, y] = [rank(a), rank(b)];
      if (x === y) return 0;
      if (x === Infinity || y === Infinity) return x === Infinity ? 1 : -1; // undefined comes last
      return (descending ? -1 : 1) * (x - y);
    });
    body.append(...keyed.map(([, row]) => row));
  });
}
for (const form of document.querySelectorAll("form.filters")) {
  const gallery = document.getElementById(form.dataset.gallery);
  const items = [...gallery.querySelectorAll("li")];
  const apply = () => {
    const { label, prediction, confidence, text } = form.elements;
    const wanted = text.value.toLowerCase();
    let shown = 0;
    for (const item of items) {
      item.hidden =
        (label.value !== "" && !item.dataset.label.split(" ").includes(label.value)) ||
        (prediction.value !== "" && !item.dataset.prediction.split(" ").includes(prediction.value)) ||
        Number(item.dataset.confidence) * 100 < Number(confidence.value) ||
        !item.dataset.path.toLowerCase().includes(wanted);
      shown += item.hidden ? 0 : 1;
    }
    const more = gallery.querySelector("details");
    if (more && shown < items.length) more.open = true;
    form.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}
