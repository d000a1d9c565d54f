// One conversation with settings of its own: the fields, the log, and one answer at a time.

import { Answer } from "./answer.js";
import { stream } from "./api.js";
import { hideCard, showCard } from "./card.js";
import { whenThemeChanges } from "./colours.js";
import { at, element, say } from "./dom.js";
import { number, plural, seconds } from "./format.js";
import { onShared, shared } from "./shared.js";

const listed = (text) => text.split(/[\s,]+/).filter(Boolean);

export class Pane {
  constructor(name) {
    this.name = name;
    this.node = at("pane-template").content.cloneNode(true).firstElementChild;
    this.log = this.node.querySelector(".log");
    this.fields = this.node.querySelector("form").elements;
    this.node.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    this.node.setAttribute("aria-label", `Setting ${name}`);
    say(this.node.querySelector(".pane-name"), name);
    this.clear();
    const colour = () => this.answers.forEach((answer) => answer.colour());
    for (const change of ["layers", "place"]) onShared(change, colour);
    whenThemeChanges(colour);
    onShared("layers", () => this.limit());
  }

  clear() {
    this.messages = [];
    this.answers = [];
    this.log.replaceChildren(element("p", { className: "hint quiet" }, "Say something to the model."));
  }

  limit() {
    const most = Math.max(1, ...shared.layers.map((l) => l.num_experts));
    this.fields.top_k.max = most;
    this.fields.top_k.placeholder = shared.layers.length ? `${shared.layers[0].top_k}, the model's` : "the model's";
    for (const part of this.node.querySelectorAll(".of-experts")) part.hidden = !shared.layers.length;
  }

  // What a request says of routing; undefined where it says nothing.
  routing() {
    const { tags, top_k, ban, router_temperature, profile } = this.fields;
    const routing = {};
    if (listed(tags.value).length) routing.tags = listed(tags.value);
    if (top_k.value) routing.top_k = Number(top_k.value);
    if (listed(ban.value).length) routing.ban = listed(ban.value).map(Number);
    if (router_temperature.value) routing.temperature = Number(router_temperature.value);
    if (JSON.parse(profile.value) !== null) routing.profile = JSON.parse(profile.value);
    return shared.layers.length && Object.keys(routing).length ? routing : undefined;
  }

  request() {
    const { system, temperature, max_tokens } = this.fields;
    const beginning = system.value ? [{ role: "system", content: system.value }] : [];
    return {
      messages: [...beginning, ...this.messages],
      stream: true,
      return_token_ids: true,
      return_routed_experts: (!shared.without && at("colour").checked) || undefined,
      temperature: Number(temperature.value),
      max_tokens: Number(max_tokens.value),
      routing: this.routing(),
    };
  }

  add(kind, text = "") {
    this.log.querySelector(".hint")?.remove();
    const bubble = element("div", { className: `message ${kind}` }, ...(text ? [text] : []));
    this.log.append(bubble);
    this.log.scrollTop = this.log.scrollHeight;
    return bubble;
  }

  // Sends `text`; gives whether an answer came. Another list of messages (clear) is not touched by a late answer.
  async ask(text, signal) {
    const messages = this.messages;
    const question = this.add("user", text);
    messages.push({ role: "user", content: text });
    const bubble = this.add("assistant busy");
    const answer = new Answer(bubble);
    this.answers.push(answer);
    this.watch(answer);
    const times = { sent: performance.now(), first: null };
    try {
      await this.receive(answer, times, signal).catch((error) => {
        if (error.param !== "return_routed_experts") throw error;
        withoutColours(error.message);
        return this.receive(answer, times, signal);
      });
    } catch (error) {
      if (error.name !== "AbortError") this.add("error", error.message).setAttribute("role", "alert");
    }
    bubble.classList.remove("busy");
    if (answer.text) {
      messages.push({ role: "assistant", content: answer.text });
      return answer;
    }
    messages.pop();
    for (const node of [bubble, question]) node.remove();
    return null;
  }

  async receive(answer, times, signal) {
    let routing = null;
    for await (const event of stream("v1/chat/completions", this.request(), signal)) {
      const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
      const choice = event.choices[0];
      routing = event.routing ?? routing;
      const tokens = choice?.token_ids?.length ?? 0;
      if (tokens) times.first ??= performance.now();
      if (choice) answer.push(choice.delta.content ?? "", tokens, choice.routed_experts);
      times.last = performance.now();
      if (follows) this.log.scrollTop = this.log.scrollHeight;
    }
    if (answer.tokens) this.log.append(element("p", { className: "facts quiet" }, facts(answer, times, routing)));
    this.log.scrollTop = this.log.scrollHeight;
  }

  // The pointer or the arrow keys walk through the tokens; the card tells of the one they are at.
  watch(answer) {
    const { bubble } = answer;
    bubble.tabIndex = 0;
    bubble.setAttribute("role", "group");
    bubble.setAttribute("aria-label", "Answer; the arrow keys walk through its tokens");
    const look = (index) => {
      answer.pieces[answer.current]?.node.classList.remove("current");
      answer.current = index;
      const piece = answer.pieces[index];
      if (!piece) return hideCard();
      piece.node.classList.add("current");
      showCard(answer, piece);
    };
    bubble.addEventListener("pointerover", (event) => look(answer.pieces.findIndex((p) => p.node === event.target)));
    for (const leaving of ["pointerleave", "blur"]) bubble.addEventListener(leaving, () => look(-1));
    bubble.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return look(-1);
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step || !answer.pieces.length) return;
      event.preventDefault();
      const from = answer.current ?? -1;
      look(Math.min(answer.pieces.length - 1, Math.max(0, from + step)));
      answer.pieces[answer.current].node.scrollIntoView({ block: "nearest" });
    });
  }
}

// Models whose routes nobody can tell still chat.
function withoutColours(reason) {
  Object.assign(at("colour"), { checked: false, disabled: true });
  at("colour").closest("label").title = reason;
}

function facts(answer, times, routing) {
  const elapsed = (times.last - times.first) / 1000;
  const rate = answer.tokens > 1 && elapsed > 0 ? `${number((answer.tokens - 1) / elapsed)} tokens/s` : null;
  const used = routing && `routing: ${told(routing)}`;
  const parts = [
    plural(answer.tokens, "token"),
    rate,
    `first after ${seconds((times.first - times.sent) / 1000)}`,
    used,
  ];
  return parts.filter(Boolean).join(" · ");
}

// {tags: ["a"], rules: [{top_k: 1}, {ban: [3, 4]}]} → tags a, top_k 1, ban 3+4
function told({ tags = [], rules = [], profile = "" }) {
  const parts = Object.entries({ tags, ...(profile && { profile }) }).concat(...rules.map(Object.entries));
  const named = parts.filter(([, value]) => !Array.isArray(value) || value.length);
  return named
    .map(([name, value]) => `${name} ${Array.isArray(value) ? value.join("+") : JSON.stringify(value)}`)
    .join(", ");
}
