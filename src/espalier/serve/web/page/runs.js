// Runs: curves that grow while one trains, several laid over each other, samples, exams.

import { asked, at, made, onLanguage, say } from "./page.js";
import { chart } from "./chart.js";

const FAST = 2000; // ms between two looks while one of them trains
const SLOW = 10000;
const STATUS = { stopped: "stopped early" };

const chosen = new Set();
const known = new Map(); // name -> { mark, view }
let listed = [];
let drawn = "";
let error = "";

export function startRuns(about) {
  if (!about.runs) return;
  at("smooth").oninput = draw;
  onLanguage(() => { list(); draw(); });
  look();
}

async function look() {
  let again = SLOW;
  if (!at("runs").hidden && !document.hidden) {
    try {
      listed = await (await asked("/web/runs")).json();
      if (!chosen.size && listed.length) chosen.add(listed[0].name);
      await Promise.all([...chosen].map(read));
      error = "";
    } catch (problem) {
      error = problem.message;
    }
    list();
    draw();
  }
  if (at("runs").hidden || listed.some((run) => chosen.has(run.name) && run.status === "running")) again = FAST;
  setTimeout(look, again);
}

async function read(name) {
  const mark = known.get(name)?.mark;
  const path = `/web/runs/${name.split("/").map(encodeURIComponent).join("/")}`;
  const response = await asked(path, { headers: mark ? { "If-None-Match": mark } : {}, cache: "no-store" });
  if (response.status !== 304) known.set(name, { mark: response.headers.get("ETag"), view: await response.json() });
}

const status = (of) => say(STATUS[of] ?? of);

let list_drawn = "";

function list() {
  const now = JSON.stringify([listed, [...chosen], say("done")]);
  if (now === list_drawn) return;
  list_drawn = now;
  at("run-list").replaceChildren(...listed.map((run) => {
    const box = made("input", { type: "checkbox", checked: chosen.has(run.name) });
    box.onchange = async () => {
      if (box.checked) {
        chosen.add(run.name);
        await read(run.name).catch((problem) => { error = problem.message; });
      } else chosen.delete(run.name);
      draw();
    };
    return made("label", {}, box, made("span", {}, run.name, " ", made("span", { className: "faint", textContent: status(run.status) })));
  }));
  if (!listed.length) at("run-list").textContent = say("no runs yet");
}

function draw() {
  const views = [...chosen].filter((name) => known.has(name)).map((name) => [name, known.get(name).view]);
  const now = JSON.stringify([views.map(([name]) => [name, known.get(name).mark]), at("smooth").value, say("done"), error]);
  if (now === drawn) return;
  drawn = now;
  const parts = error ? [made("p", { className: "error", textContent: error })] : [];
  if (!views.length) parts.push(made("p", { className: "faint", textContent: say("choose a run") }));
  const lines = views.flatMap(([run, view]) => view.stages.filter((stage) => Object.keys(stage.curves).length).map((stage) => ({ run, stage })));
  parts.push(legend(views, lines), ...curves(lines));
  for (const [name, view] of views) parts.push(...details(name, view, views.length > 1));
  const open = new Set([...at("shown").querySelectorAll("details[open]")].map((one) => one.dataset.key));
  at("shown").replaceChildren(...parts);
  for (const one of at("shown").querySelectorAll("details")) one.open = open.has(one.dataset.key);
}

function legend(views, lines) {
  return made("div", { className: "legend" }, ...lines.map(({ run, stage }, number) => {
    const steps = stage.total ? say("step {step} of {total}", { step: stage.steps, total: stage.total }) : say("step {step}", { step: stage.steps });
    const name = views.length > 1 ? `${run} / ${stage.name}` : stage.name;
    return made("span", {}, made("i", { className: `c${number % 8}` }), name, " ", made("span", { className: "faint", textContent: `${status(stage.status)}, ${steps}` }));
  }));
}

const FIRST = ["loss", "eval_loss", "accuracy", "eval_accuracy", "reward", "eval_reward", "kl", "margin"];
const LAST = ["learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"];

function curves(lines) {
  const names = [...new Set(lines.flatMap(({ stage }) => Object.keys(stage.curves)))].filter((name) => !name.endsWith("_stderr")); // those are bands
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) - 100 : LAST.includes(name) ? 100 : 0);
  names.sort((a, b) => rank(a) - rank(b));
  if (!names.length) return lines.length ? [made("p", { className: "faint", textContent: say("nothing to draw yet") })] : [];
  const figures = names.map((name) => {
    const series = lines.map(({ stage }, number) => ({ colour: number % 8, points: stage.curves[name] ?? [], errors: new Map(stage.curves[`${name}_stderr`]) })).filter((one) => one.points.length);
    return chart(name, series, Number(at("smooth").value));
  });
  return [made("div", { className: "charts" }, ...figures)];
}

function details(name, view, several) {
  const head = (word) => made("h2", { textContent: several ? `${say(word)} · ${name}` : say(word) });
  const parts = [...view.notes, ...view.stages.flatMap((stage) => stage.warnings)].map((note) => made("p", { className: "error", textContent: note }));
  if (view.exams.tasks.length) parts.push(head("exams"), exams(view.exams));
  const samples = view.stages.flatMap((stage) => stage.samples.map((sample) => ({ ...sample, stage: stage.name })));
  if (samples.length) {
    parts.push(head("samples"));
    for (const one of samples.slice(-12).reverse()) {
      const reward = one.reward == null ? "" : ` · ${say("score {score}", { score: Number(one.reward.toPrecision(4)) })}`;
      parts.push(made("div", { className: "sample" },
        made("div", { className: "faint", textContent: `${one.stage} · ${say("step {step}", { step: one.step })}${reward}` }),
        made("div", { className: "faint", textContent: one.prompt ?? "" }), made("div", { textContent: one.completion ?? "" }),
        ...(one.reference ? [made("div", { className: "faint", textContent: `${say("reference")}: ${one.reference}` })] : [])));
    }
  }
  if (view.config) {
    const more = made("details", {}, made("summary", { textContent: several ? `${say("options")} · ${name}` : say("options") }), made("pre", { textContent: view.config }));
    more.dataset.key = name;
    parts.push(more);
  }
  return parts;
}

function exams({ models, tasks }) {
  const head = made("tr", {}, ...[say("task"), say("metric"), ...models].map((text) => made("th", { textContent: text })));
  const rows = tasks.map(({ task, metric, scores }) => made("tr", {}, made("td", { textContent: task }), made("td", { textContent: metric }),
    ...scores.map((score) => made("td", { textContent: score?.text ?? "–", className: score?.best ? "best" : "" }))));
  return made("div", { className: "scroll" }, made("table", {}, head, ...rows));
}
