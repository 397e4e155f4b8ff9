"use strict";
const root = document.documentElement;
root.classList.add("js");

// Light and dark: as the system has it, until the button says otherwise.
const theme = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.hidden = false;
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
systemDark.addEventListener("change", nameTheme);
nameTheme();

// Sorting: cells carry their value in data-v; empty ones stay at the end in both directions.
const board = document.getElementById("board");
const heads = board ? [...board.tHead.rows[0].cells] : [];
heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  const number = head.classList.contains("number");
  const value = (row) => row.cells[column].dataset.v;
  const compare = (a, b) => {
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = number ? Number(x) - Number(y) : x.localeCompare(y);
    return up ? order : -order;
  };
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  board.tBodies[0].append(...[...board.tBodies[0].rows].sort(compare));
}));

// Forecasts of one system at a time.
const tabs = document.querySelector(".tabs");
if (tabs) {
  tabs.hidden = false;
  const buttons = [...tabs.querySelectorAll("button")];
  buttons.forEach((button) => button.addEventListener("click", () => buttons.forEach((other) => {
    other.setAttribute("aria-pressed", String(other === button));
    document.getElementById("gallery-" + other.dataset.gallery).hidden = other !== button;
  })));
}
