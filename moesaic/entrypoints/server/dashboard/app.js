// Puts the page together: the API key, the panels, and an example for programs.

import { apiKey, setApiKey, when } from "./api.js";
import { watchAdvice } from "./advice.js";
import { Chat } from "./chat.js";
import { at, say } from "./dom.js";
import { Experts } from "./experts.js";
import { Status } from "./status.js";

function showExample() {
  const model = at("model").dataset.name ?? "";
  const body = JSON.stringify({ model, messages: [{ role: "user", content: "Explain MoE architecture" }] });
  const key = apiKey() ? " \\\n  -H 'Authorization: Bearer KEY'" : "";
  const url = new URL("v1/chat/completions", document.baseURI);
  const quoted = body.replaceAll("'", "'\\''");
  say(at("curl"), `curl ${url}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${quoted}'`);
}

async function copyExample() {
  await navigator.clipboard.writeText(at("curl").textContent);
  say(at("copy"), "Copied");
  setTimeout(() => say(at("copy"), "Copy"), 1500);
}

// The field opens when the server asks for a key; what it holds is kept for this tab.
function watchKey(panels) {
  at("key").value = apiKey();
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setApiKey(at("key").value);
  });
  when("refused", (error) => {
    say(at("key-note"), error.message);
    at("key-box").open = true;
  });
  when("key", () => {
    at("key-box").open = false;
    say(at("key-note"), "");
    showExample();
    for (const panel of panels) panel();
  });
}

const status = new Status(showExample);
const experts = new Experts();
const advice = watchAdvice();
const chat = new Chat();
watchKey([status.look, experts.look, advice, chat.lookForProfiles]);
at("copy").addEventListener("click", copyExample);
at("copy").hidden = !navigator.clipboard; // browsers give it to secure pages only
