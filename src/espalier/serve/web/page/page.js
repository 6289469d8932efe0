// Language, tabs and the password; chat.js and runs.js have one tab each.

import { startChat } from "./chat.js";
import { startRuns } from "./runs.js";

export const at = (id) => document.getElementById(id);

const words = await (await fetch("/page/words.json")).json();
const wanted = document.documentElement.dataset.language;
const kept = localStorage.getItem("language");
let language = wanted !== "auto" ? wanted : kept || (navigator.language.startsWith("zh") ? "zh" : "en");
const listeners = [];

export function say(text, values = {}) {
  const said = words[language]?.[text] ?? text;
  return said.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export const onLanguage = (call) => listeners.push(call);

function setLanguage(to) {
  language = to;
  document.documentElement.lang = to;
  at("language").textContent = to === "zh" ? "English" : "中文";
  for (const one of document.querySelectorAll("[data-say]")) one.textContent = say(one.dataset.say);
  for (const one of document.querySelectorAll("[data-hint]")) one.placeholder = say(one.dataset.hint);
  for (const call of listeners) call();
}

// An element with its text and children; text is never read as HTML.
export function made(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

let password = sessionStorage.getItem("password") || "";

// What the server answers; asks for the password where one is wanted. Throws an Error with the server's message.
export async function asked(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers };
    if (password) headers.Authorization = `Bearer ${password}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(say("the page cannot reach its server"));
    }
    if (response.status === 401) {
      await enter();
      continue;
    }
    if (!response.ok && response.status !== 304) {
      const body = await response.json().catch(() => ({}));
      throw new Error(body.error?.message ?? `${response.status}`);
    }
    return response;
  }
}

let entering = null;

function enter() {
  entering ??= new Promise((resolve) => {
    at("wrong").textContent = password ? say("wrong password") : "";
    at("enter").showModal();
    at("enter").onclose = () => {
      // A header can hold nothing but these letters, and the server takes no other password.
      password = at("password").value.trim().replace(/[^\x20-\x7e]/g, "?");
      sessionStorage.setItem("password", password);
      entering = null;
      resolve();
    };
  });
  return entering;
}

export const posted = (path, body, signal) =>
  asked(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

function show(tab) {
  for (const name of ["chat", "runs"]) {
    at(name).hidden = name !== tab;
    at(`tab-${name}`).toggleAttribute("aria-current", name === tab);
  }
  location.hash = tab;
}

at("language").onclick = () => {
  setLanguage(language === "zh" ? "en" : "zh");
  localStorage.setItem("language", language);
};
at("tab-chat").onclick = () => show("chat");
at("tab-runs").onclick = () => show("runs");

setLanguage(language);
const about = await (await asked("/web/about")).json();
startChat(about);
startRuns(about);
at("tab-runs").hidden = !about.runs;
at("tab-chat").hidden = !Object.keys(about.models).length;
const first = Object.keys(about.models).length ? "chat" : "runs";
const named = location.hash.slice(1);
show(["chat", "runs"].includes(named) && !at(`tab-${named}`).hidden ? named : first);
setLanguage(language);
