// The session with WS /v1/realtime: connects, comes back after a loss, and pairs headers with pictures.

const FIRST_WAIT = 500; // milliseconds, doubled after each failure
const LONGEST_WAIT = 8000;
const KEEP_ALIVE = 60_000;
const MOST_UNSENT = 256 * 1024; // bytes; beyond, the network cannot follow and newer drawings are better

export class Live extends EventTarget {
  #socket = null;
  #header = null;
  #inputs = 0;
  #asked = new Map(); // input → {time, prompt}: when it was sent, and what it asks for
  #prompt = ""; // of the settings that were sent last
  #wait = FIRST_WAIT;
  #timer = null; // of the next attempt
  #wanted = false; // whether input came while there was no connection

  // `key` is the API key or "".
  constructor(key) {
    super();
    this.key = key;
    setInterval(() => { if (!document.hidden) this.send({type: "ping"}); }, KEEP_ALIVE);
  }

  get open() { return this.#socket?.readyState === WebSocket.OPEN && this.ready; }

  // Ends what there is of a connection, and tries no more until `connect` or the next input.
  rest() {
    clearTimeout(this.#timer);
    this.#wait = FIRST_WAIT;
    if (this.#socket === null) return;
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#lose();
  }

  connect() {
    clearTimeout(this.#timer);
    this.#emit("state", {state: "connecting"});
    const url = new URL("/v1/realtime", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const known = sessionStorage.getItem("client_id");
    if (known) url.searchParams.set("client_id", known);
    const socket = new WebSocket(url, this.key ? ["pixart", `pixart-key.${this.key}`] : []);
    socket.binaryType = "blob";
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#closed(event);
    this.#socket = socket;
    this.ready = false;
  }

  send(message) {
    if (this.open) this.#socket.send(JSON.stringify(message));
  }

  update(settings) {
    this.#prompt = settings.prompt;
    this.send({type: "session.update", session: settings});
  }

  generate() {
    if (!this.#count()) return;
    this.send({type: "generate"});
  }

  // A drawing or a picture; false if it was not sent.
  sendImage(blob) {
    if (this.open && this.#socket.bufferedAmount > MOST_UNSENT) return false;
    if (!this.#count()) return false;
    this.#socket.send(blob);
    return true;
  }

  get pending() { return this.#asked.size > 0; }

  #count() {
    if (!this.open) {
      this.#wanted = true;
      if (this.#socket === null) this.connect();
      return false;
    }
    this.#asked.set(++this.#inputs, {time: performance.now(), prompt: this.#prompt});
    return true;
  }

  #receive(data) {
    if (this.#header !== null) {
      const header = this.#header;
      this.#header = null;
      const asked = this.#asked.get(header.input);
      if (header.type === "image.completed") this.#forget(header.input);
      this.#emit(header.type, {...header, blob: data, asked});
      return;
    }
    const message = JSON.parse(data);
    switch (message.type) {
      case "image.preview":
      case "image.completed":
        this.#header = message;
        return;
      case "session.created":
        this.#begin(message);
        return;
      case "dropped":
        for (const number of message.inputs) this.#asked.delete(number);
        break;
      case "error":
        if (message.input !== null) this.#asked.delete(message.input);
        break;
    }
    this.#emit(message.type, message);
  }

  #forget(input) {
    for (const number of this.#asked.keys()) if (number <= input) this.#asked.delete(number);
  }

  #begin(message) {
    sessionStorage.setItem("client_id", message.client_id);
    this.ready = true;
    this.#wait = FIRST_WAIT;
    this.#inputs = 0;
    this.#asked.clear();
    this.#emit("state", {state: "open", model: message.model, wanted: this.#wanted});
    this.#wanted = false;
  }

  #lose() {
    this.#socket = null;
    this.#header = null;
    this.#asked.clear();
  }

  #closed(event) {
    this.#lose();
    if (event.code === 4408) { // nothing happened for long; the next input connects again
      this.#emit("state", {state: "asleep"});
      return;
    }
    if (event.code === 4409) {
      this.#emit("state", {state: "taken"});
      return;
    }
    this.#wanted = true;
    const wait = this.#wait * (0.75 + Math.random() / 2);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT);
    this.#emit("state", {state: "waiting", seconds: wait / 1000, reason: event.reason});
    this.#timer = setTimeout(() => this.connect(), wait);
  }

  #emit(name, detail) { this.dispatchEvent(new CustomEvent(name, {detail})); }
}
