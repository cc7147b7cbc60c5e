// A click on a title, or Enter, sorts its table: numbers by value, words by letter; a second click reverses the order.
for (const title of document.querySelectorAll("table.sortable th")) {
  const sort = () => {
    const row = title.parentNode, body = row.closest("table").tBodies[0], column = title.cellIndex
    const rising = title.getAttribute("aria-sort") !== "ascending"
    for (const other of row.children) other.removeAttribute("aria-sort")
    title.setAttribute("aria-sort", rising ? "ascending" : "descending")
    const value = line => {
      const text = line.cells[column].textContent.replaceAll(",", "").replace("\u2212", "-")
      return [Number.parseFloat(text), text]
    }
    const compare = ([a, one], [b, other]) =>
      Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) || one.localeCompare(other) : a - b
    const lines = [...body.rows].sort((a, b) => (rising ? 1 : -1) * compare(value(a), value(b)))
    body.append(...lines)
  }
  title.addEventListener("click", sort)
  title.addEventListener("keydown", event => event.key === "Enter" && sort())
}
// On paper nothing is folded.
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true
})
