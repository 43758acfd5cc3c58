// Sorting of tables: a click on a column's button sorts by it, a second one turns the order, a third one undoes it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = head.dataset.first || (column ? "descending" : "ascending");
      const second = first === "ascending" ? "descending" : "ascending";
      const before = head.getAttribute("aria-sort");
      const order = before === null ? first : before === first ? second : null;
      for (const other of heads) other.removeAttribute("aria-sort");
      if (order) head.setAttribute("aria-sort", order);
      body.append(...(order ? sorted(original, column, order === "ascending" ? 1 : -1) : original));
    });
  });
}

function sorted(rows, column, sign) {
  const value = (row) => row.cells[column].dataset.value;
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // without a figure: last, whatever the order
    return sign * (column ? x - y : x.localeCompare(y));
  });
}
