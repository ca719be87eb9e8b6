// The little curves of the last minute.

/** Seconds that the curves show, one value each. */
export const HISTORY_S = 60;

/** Puts a value at the end of a minute's values. */
export function push(values, value) {
  values.push(value);
  if (values.length > HISTORY_S) values.shift();
}

/** Draws `values` into the shapes of `root` whose classes start with `name`, and `now` beside them. */
export function drawSpark(root, name, values, now) {
  const top = Math.max(...values, 1e-9) * 1.1;
  const points = values.map((value, i) => `${((i + HISTORY_S - values.length) * 120) / (HISTORY_S - 1)},${(32 - (32 * value) / top).toFixed(2)}`);
  const first = points[0].split(",")[0];
  root.querySelector(`.${name}-line`).setAttribute("points", points.join(" "));
  root.querySelector(`.${name}-area`).setAttribute("points", `${first},32 ${points.join(" ")} 120,32`);
  root.querySelector(`.${name}-now`).textContent = now;
}
