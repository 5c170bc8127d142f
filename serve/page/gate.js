// What a share of reranked users keeps of the gain: by the gate's choice, and by chance.

import { svg } from "./element.js";
import { share, signed } from "./words.js";

const WIDTH = 420;
const HEIGHT = 220;
const MARGIN = { left: 58, right: 18, top: 14, bottom: 40 };

/** @param {Array<{share: number, gain: number, random: number}>} points of report.json. */
export function gatePicture(points) {
  const values = points.flatMap((point) => [point.gain, point.random, 0]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const x = (part) => MARGIN.left + part * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (gain) => HEIGHT - MARGIN.bottom - ((gain - low) / span) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const path = (name) => points.map((point, at) => `${at ? "L" : "M"}${x(point.share)} ${y(point[name])}`).join("");
  const levels = [...new Set([low, 0, high])];
  const best = points.reduce((one, other) => (other.gain > one.gain ? other : one));
  const half = points[Math.floor(points.length / 2)];
  return svg(
    "svg",
    {
      class: "gate",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": `The gate gains most, ${signed(best.gain)}, with ${share(best.share)} of users reranked; chance gains ${signed(best.random)} there`,
    },
    ...levels.flatMap((level) => [
      svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(level), y2: y(level) }),
      svg("text", { class: "end", x: MARGIN.left - 8, y: y(level) + 4 }, signed(level)),
    ]),
    ...[0, 0.5, 1].map((part) => svg("text", { class: "middle", x: x(part), y: HEIGHT - MARGIN.bottom + 18 }, share(part))),
    svg("text", { class: "middle", x: x(0.5), y: HEIGHT - 4 }, "users reranked"),
    svg("path", { d: path("random") }),
    svg("path", { class: "ours", d: path("gain") }),
    svg("text", { class: "ours end", x: x(half.share) - 10, y: y(half.gain) - 6 }, "gate"),
    svg("text", { x: x(half.share) + 12, y: y(half.random) + 16 }, "chance"),
  );
}
