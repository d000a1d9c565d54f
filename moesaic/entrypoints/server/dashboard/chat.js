// A conversation with the model, streamed from /v1/chat/completions.

// The messages of a stream of server-sent events.
async function* events(response) {
  const decoder = new TextDecoder();
  let rest = "";
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

export class Chat {
  constructor(at) {
    this.at = at;
    this.messages = [];
    this.running = null; // AbortController of the answer under way
    at("chat").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.send();
    });
    at("text").addEventListener("keydown", (event) => this.onKey(event));
    at("clear").addEventListener("click", () => this.clear());
  }

  onKey(event) {
    if (event.key === "Escape" && this.running) this.running.abort();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.running) this.at("chat").requestSubmit();
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    this.at("log").replaceChildren();
    this.at("text").focus();
  }

  add(kind, text) {
    const log = this.at("log");
    log.querySelector(".hint")?.remove();
    const bubble = document.createElement("div");
    bubble.className = `message ${kind}`;
    bubble.textContent = text;
    log.append(bubble);
    log.scrollTop = log.scrollHeight;
    return bubble;
  }

  async send() {
    const text = this.at("text").value.trim();
    if (!text) return;
    const messages = this.messages; // clear() begins another list: a late answer must not join it
    this.at("text").value = "";
    this.add("user", text);
    messages.push({ role: "user", content: text });
    const bubble = this.add("assistant busy", "");
    this.setRunning(new AbortController());
    try {
      await this.stream(messages, bubble);
    } catch (error) {
      if (error.name !== "AbortError") this.add("error", error.message);
    } finally {
      this.setRunning(null);
      bubble.classList.remove("busy");
      if (bubble.textContent) messages.push({ role: "assistant", content: bubble.textContent });
      else this.takeBack(messages, bubble, text);
    }
  }

  // No answer came: the message returns to where it can be sent again.
  takeBack(messages, bubble, text) {
    bubble.remove();
    messages.pop();
    if (!this.at("text").value) this.at("text").value = text;
  }

  setRunning(controller) {
    this.running = controller;
    this.at("send").textContent = controller ? "Stop" : "Send";
    this.at("text").required = !controller; // an empty field must not keep Stop from working
  }

  async stream(messages, bubble) {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: this.headers(),
      body: JSON.stringify(this.request(messages)),
      signal: this.running.signal,
    });
    if (response.status === 401) this.askForKey();
    if (!response.ok) throw new Error(await reasonOf(response));
    const log = this.at("log");
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      bubble.textContent += event.choices[0]?.delta.content ?? "";
      if (follows) log.scrollTop = log.scrollHeight;
    }
  }

  request(messages) {
    const system = this.at("system").value;
    const beginning = system ? [{ role: "system", content: system }] : [];
    return {
      messages: [...beginning, ...messages],
      stream: true,
      temperature: Number(this.at("temperature").value),
      max_tokens: Number(this.at("max-tokens").value),
    };
  }

  headers() {
    const key = this.at("key").value;
    return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  }

  askForKey() {
    this.at("key").closest("details").open = true;
    this.at("key").focus();
  }
}
