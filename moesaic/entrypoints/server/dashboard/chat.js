// The chat panel: one message to one conversation, or to two with different settings.

import { at, say } from "./dom.js";
import { compare } from "./compare.js";
import { Pane } from "./pane.js";
import { watchProfiles } from "./profiles.js";
import { layerSelect } from "./shared.js";

export class Chat {
  constructor() {
    this.panes = [new Pane("A"), new Pane("B")];
    at("panes").append(...this.panes.map((pane) => pane.node));
    this.running = null; // AbortController of the answers under way
    layerSelect(at("chat-layer"));
    at("chat").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.send();
    });
    at("text").addEventListener("keydown", (event) => this.onKey(event));
    at("clear").addEventListener("click", () => this.clear());
    at("compare").addEventListener("change", () => this.arrange());
    at("numbers").addEventListener("change", () => at("panes").classList.toggle("numbers", at("numbers").checked));
    this.arrange();
    this.lookForProfiles = watchProfiles(this.panes.map((pane) => pane.fields.profile));
  }

  get used() {
    return at("compare").checked ? this.panes : this.panes.slice(0, 1);
  }

  // Two settings begin on equal terms: a change begins anew.
  arrange() {
    const two = at("compare").checked;
    this.panes[1].node.hidden = !two;
    document.body.classList.toggle("comparing", two);
    this.clear();
  }

  clear() {
    this.running?.abort();
    this.panes.forEach((pane) => pane.clear());
    say(at("verdict"), "");
  }

  onKey(event) {
    if (event.key === "Escape" && this.running) this.running.abort();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.running) at("chat").requestSubmit();
  }

  async send() {
    const text = at("text").value.trim();
    if (!text) return;
    const panes = this.used;
    const wrong = panes
      .map((pane) => pane.fields)
      .flatMap((fields) => [...fields])
      .find((field) => !field.checkValidity());
    if (wrong) return reveal(wrong);
    at("text").value = "";
    say(at("verdict"), "");
    const controller = this.setRunning(new AbortController());
    const answers = await Promise.all(panes.map((pane) => pane.ask(text, controller.signal)));
    if (this.running === controller) this.setRunning(null);
    if (answers.every((answer) => !answer) && !at("text").value) at("text").value = text; // to be sent again
    if (answers.length === 2 && answers.every(Boolean)) say(at("verdict"), compare(...answers));
  }

  setRunning(controller) {
    this.running = controller;
    say(at("send"), controller ? "Stop" : "Send");
    at("text").required = !controller; // an empty field must not keep Stop from working
    return controller;
  }
}

// A field that may be folded away is shown with what the browser says of it.
function reveal(field) {
  const folded = field.closest("details");
  if (folded) folded.open = true;
  field.reportValidity();
}
