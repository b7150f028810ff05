// before anything is drawn: the theme that was chosen here, or that of the system
const THEMES = ["auto", "light", "dark"];

function chosen() {
  try {
    const theme = localStorage.getItem("theme");
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    // a browser that keeps nothing
    return "auto";
  }
}

function choose(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) button.textContent = `Theme: ${theme}`;
}

choose(chosen());
addEventListener("DOMContentLoaded", () => {
  choose(chosen());
  document.getElementById("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    try {
      localStorage.setItem("theme", next);
    } catch {
      // it holds until the page is left
    }
    choose(next);
    document.dispatchEvent(new Event("theme"));
  });
});
