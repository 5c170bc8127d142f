// A plain script in the head, not a module: a chosen colour scheme must stand before the first paint.
(() => {
  const KEY = "tandem.theme";
  const NAMES = { system: "as the system", light: "light", dark: "dark" };
  const SIGNS = { system: "◐", light: "☀", dark: "☾" };
  const NEXT = { system: "light", light: "dark", dark: "system" };

  function saved() {
    try {
      const found = localStorage.getItem(KEY);
      return found in NAMES ? found : "system";
    } catch {
      return "system"; // storage may be forbidden
    }
  }

  function show(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  let theme = saved();
  show(theme);

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      button.textContent = SIGNS[theme];
      button.setAttribute("aria-label", `Colours: ${NAMES[theme]}; change to ${NAMES[NEXT[theme]]}`);
      button.title = `Colours: ${NAMES[theme]}`;
    };
    label();
    button.addEventListener("click", () => {
      theme = NEXT[theme];
      show(theme);
      label();
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // it then lasts as long as the page
      }
    });
  });
})();
