// A conversation with one model, or with two that answer the same question and are voted on.

import { asked, at, made, onLanguage, posted, say } from "./page.js";

const SETTINGS = {
  max_new_tokens: { value: 512, min: 1, step: 1 },
  temperature: { value: 0.7, min: 0, max: 100, step: 0.1 },
  top_p: { value: 0.9, min: 0.05, max: 1, step: 0.05 },
  top_k: { value: 0, min: 0, step: 1 },
  min_p: { value: 0, min: 0, max: 1, step: 0.01 },
  repetition_penalty: { value: 1, min: 0.01, max: 100, step: 0.05 },
  seed: { value: "", step: 1 },
};

let messages = []; // what was said, without the system prompt
let stopping = null;

export function startChat(about) {
  const names = Object.keys(about.models);
  fill("model", names);
  fill("other", ["", ...names]);
  fill("scorer", ["", ...about.scorers]);
  at("scorer").closest("label").hidden = !about.scorers.length;
  for (const [name, limits] of Object.entries(SETTINGS)) {
    const input = made("input", { type: "number", id: `set-${name}`, ...limits });
    at("settings").append(made("label", {}, made("span", {}), input));
    input.dataset.name = name;
  }
  at("choices").addEventListener("change", describe);
  at("ask").onsubmit = (event) => { event.preventDefault(); ask(at("question").value); };
  at("question").onkeydown = (event) => {
    // While Chinese is being put together Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    at("ask").requestSubmit();
  };
  at("stop").onclick = () => stopping?.abort();
  at("clear").onclick = () => { stopping?.abort(); messages = []; at("talk").replaceChildren(); };
  at("retry").onclick = again;
  at("save").onclick = save;
  at("load").onclick = () => at("file").click();
  at("file").onchange = load;
  onLanguage(translate);
  translate();
}

function fill(id, names) {
  at(id).replaceChildren(...names.map((name) => made("option", { value: name, textContent: name })));
}

function translate() {
  for (const input of at("settings").querySelectorAll("input"))
    input.previousSibling.textContent = say(input.dataset.name);
  for (const id of ["other", "scorer"]) if (at(id).options[0]) at(id).options[0].textContent = say("nobody");
  describe();
}

function describe() {
  const both = [at("model").value, at("other").value].filter(Boolean).join(" · ");
  at("chosen").textContent = both + (at("scorer").value ? ` · ${say("Scored by")} ${at("scorer").value}` : "");
  at("blind").closest("label").hidden = !at("other").value;
}

function settings() {
  const given = {};
  for (const input of at("settings").querySelectorAll("input"))
    if (input.value !== "") given[input.dataset.name] = Number(input.value);
  return given;
}

const turns = () => {
  const system = at("system").value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...messages];
};

function again() {
  if (stopping) return;
  while (messages.length && messages.at(-1).role === "assistant") messages.pop();
  const last = messages.pop();
  const shown = [...at("talk").querySelectorAll(".user")].at(-1);
  while (shown?.nextSibling) shown.nextSibling.remove();
  shown?.remove();
  if (last) ask(last.content);
}

async function ask(question) {
  if (stopping || !question.trim()) return;
  const before = messages.length;
  messages.push({ role: "user", content: question });
  at("question").value = "";
  at("talk").append(made("div", { className: "turn user", textContent: question }));
  const names = [at("model").value, at("other").value].filter(Boolean);
  const blind = names.length === 2 && at("blind").checked;
  const place = made("div", { className: names.length === 2 ? "pair" : "" });
  const sides = names.map((_, number) => new Side(place, names.length === 2 ? "ab"[number] : ""));
  at("talk").append(place);
  busy(true);
  try {
    const body = { models: names, messages: turns(), blind, scorer: at("scorer").value, settings: settings() };
    const response = await posted("/web/ask", body, stopping.signal);
    for await (const event of events(response)) {
      if (event.names) sides.forEach((side, number) => side.name(event.names[number]));
      else if (event.vote) offerVotes(place, sides, event.vote);
      else sides[event.side].take(event);
      follow();
    }
  } catch (error) {
    const stopped = error.name === "AbortError";
    place.append(made("p", { className: stopped ? "faint" : "error", textContent: stopped ? say("stopped") : error.message }));
  }
  busy(false);
  // Without a vote the talk goes on with the first answer; what was not answered was not asked.
  if (messages.length > before && messages.length === before + 1) {
    if (sides[0].text) messages.push({ role: "assistant", content: sides[0].text });
    else messages.pop();
  }
  follow();
}

function busy(is) {
  stopping = is ? new AbortController() : null;
  at("send").hidden = is;
  at("stop").hidden = !is;
}

function follow() {
  const talk = at("talk");
  if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 160) talk.scrollTop = talk.scrollHeight;
}

// One answer as it grows.
class Side {
  constructor(place, label) {
    this.label = label;
    this.text = "";
    this.box = made("div", { className: "turn assistant" });
    this.head = made("h3", { textContent: label });
    this.thoughts = made("div", { className: "thoughts", hidden: true });
    this.body = made("div");
    this.foot = made("div", { className: "faint" });
    this.box.append(this.head, this.thoughts, this.body, this.foot);
    this.head.hidden = !label;
    place.append(this.box);
  }

  name(name) {
    if (this.label && name) this.head.textContent = `${this.label} · ${name}`;
  }

  take(event) {
    if (event.kind === "thoughts") {
      this.thoughts.hidden = false;
      this.thoughts.textContent += event.text;
    } else if (event.kind) {
      this.text += event.text;
      this.body.textContent = this.text;
    } else if (event.error || event.no_score) {
      this.box.append(made("p", { className: "error", textContent: event.error ?? event.no_score }));
    } else if (event.end) {
      this.note(say("{count} tokens", { count: event.tokens }));
      if (event.end === "length") this.note(say("it reached its limit"));
      if (event.forgotten) this.note(say("the oldest {count} exchanges were left out", { count: event.forgotten }));
      if (event.cut) this.note(say("{count} tokens at the beginning were left out", { count: event.cut }));
    } else if ("score" in event) {
      this.note(say("score {score}", { score: Number(event.score.toPrecision(4)) }));
    }
  }

  note(text) {
    this.foot.textContent += (this.foot.textContent ? " · " : "") + text;
  }
}

function offerVotes(place, sides, id) {
  const at_answer = messages.length;
  const row = made("div", { className: "votes" });
  const vote = async (vote) => {
    for (const button of row.querySelectorAll("button")) button.disabled = true;
    try {
      const told = await (await posted("/web/vote", { id, vote })).json();
      sides.forEach((side) => side.name(told[side.label]));
      const better = sides.find((side) => side.label === vote);
      better?.box.classList.add("chosen");
      // The talk goes on with the better answer, where nothing else was said since.
      if (better && messages.length === at_answer + 1) messages[at_answer].content = better.text;
      row.replaceChildren(made("span", { className: "faint", textContent: say("noted in {file}", { file: told.file }) }));
    } catch (error) {
      for (const button of row.querySelectorAll("button")) button.disabled = false;
      row.querySelector(".error")?.remove();
      row.append(made("span", { className: "error", textContent: error.message }));
    }
    follow();
  };
  for (const [choice, text] of [["a", "a is better"], ["b", "b is better"], ["tie", "the same"]])
    row.append(made("button", { type: "button", className: "quiet", textContent: say(text), onclick: () => vote(choice) }));
  place.append(row);
}

// The JSON events of a stream.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function save() {
  if (!messages.length) return;
  const text = JSON.stringify({ messages: turns(), model: at("model").value, settings: settings() }) + "\n";
  const link = made("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "conversation.json" });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function load() {
  const [file] = at("file").files;
  at("file").value = "";
  if (!file) return;
  let turns;
  try {
    turns = JSON.parse(await file.text()).messages;
    if (!turns.every((turn) => ["system", "user", "assistant"].includes(turn.role) && typeof turn.content === "string")) throw 0;
  } catch {
    at("talk").append(made("p", { className: "error", textContent: say("this file holds no conversation") }));
    return;
  }
  at("system").value = turns[0]?.role === "system" ? turns.shift().content : "";
  messages = turns.map(({ role, content }) => ({ role, content }));
  at("talk").replaceChildren(...messages.map(({ role, content }) => made("div", { className: `turn ${role}`, textContent: content })));
}
