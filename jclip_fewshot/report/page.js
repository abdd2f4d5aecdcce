// Sorting, searching and opening classes in place. The page is complete without it.
"use strict";

const ordered = new Intl.Collator("en", { numeric: true });
// what a cell sorts by: its number where it has one, else its text
const key = cell => cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return Number.isNaN(a) - Number.isNaN(b) || a - b;
  return (typeof a === "string") - (typeof b === "string") || ordered.compare(a, b);
}

function close(row) { // the card goes back to where it stands without script
  row.home.after(row.card);
  row.link.setAttribute("aria-expanded", "false");
  row.remove();
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const closeAll = () => body.querySelectorAll("tr.opened").forEach(close);

  heads.forEach((head, place) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      closeAll();
      const keyed = rows.map(row => [key(row.cells[place]), row]);
      body.append(...keyed.sort(([a], [b]) => up ? compare(a, b) : compare(b, a)).map(([, row]) => row));
    });
  });

  if (table.dataset.search) {
    const label = document.createElement("label"), input = document.createElement("input");
    const count = document.createElement("output"), texts = rows.map(row => row.textContent.toLowerCase());
    label.className = "search";
    input.type = "search";
    label.append(`Filter ${table.dataset.search} `, input, " ", count);
    table.parentElement.before(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      closeAll();
      rows.forEach((row, place) => { row.hidden = !words.every(word => texts[place].includes(word)); });
      count.textContent = input.value && `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
    });
  }
}

for (const link of document.querySelectorAll("a[data-card]")) {
  const card = document.getElementById(link.dataset.card), home = document.createComment(card.id);
  card.before(home);
  link.setAttribute("aria-expanded", "false");
  link.addEventListener("click", event => {
    event.preventDefault();
    const row = link.closest("tr"), next = row.nextElementSibling;
    if (next && next.classList.contains("opened")) return close(next);
    const opened = document.createElement("tr");
    Object.assign(opened, { className: "opened", card, home, link });
    opened.insertCell().colSpan = row.cells.length;
    opened.cells[0].append(card);
    row.after(opened);
    link.setAttribute("aria-expanded", "true");
  });
}
