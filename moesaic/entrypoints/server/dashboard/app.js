// Puts the page together: what the server says of itself, an example, and the chat.

import { Chat } from "./chat.js";
import { watch } from "./status.js";

const at = (id) => document.getElementById(id);

function showExample(model) {
  const body = JSON.stringify({ model, messages: [{ role: "user", content: "Explain MoE architecture" }] });
  const key = at("key").value ? " \\\n  -H 'Authorization: Bearer KEY'" : "";
  const url = new URL("v1/chat/completions", document.baseURI);
  const quoted = body.replaceAll("'", "'\\''");
  at("curl").textContent = `curl ${url}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}

function rememberKey() {
  at("key").value = sessionStorage.getItem("moesaic-key") ?? "";
  at("key").addEventListener("change", () => sessionStorage.setItem("moesaic-key", at("key").value));
}

async function copyExample() {
  await navigator.clipboard.writeText(at("curl").textContent);
  at("copy").textContent = "Copied";
  setTimeout(() => (at("copy").textContent = "Copy"), 1500);
}

rememberKey();
showExample("");
new Chat(at);
at("copy").addEventListener("click", copyExample);
at("copy").hidden = !navigator.clipboard; // browsers give it to secure pages only
at("key").addEventListener("change", () => showExample(at("model").dataset.name));
watch(at, showExample);
