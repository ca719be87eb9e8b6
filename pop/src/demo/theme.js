// Light and dark: as the system says until the button says otherwise, which holds for this tab.

/** Makes `button` switch the theme. */
export function setUpTheme(button) {
  const light = matchMedia("(prefers-color-scheme: light)");
  const show = () => {
    const theme = sessionStorage.getItem("theme");
    if (theme) document.documentElement.dataset.theme = theme;
    const isLight = theme ? theme === "light" : light.matches;
    button.textContent = isLight ? "Dark theme" : "Light theme";
    return isLight;
  };
  show();
  light.addEventListener("change", show);
  button.addEventListener("click", () => {
    sessionStorage.setItem("theme", show() ? "dark" : "light");
    show();
  });
}
