// Type, and the picture follows: one picture for each prefix of a prompt, the newest at the latest.
//
// In a page:  import {follow} from "./realtime.mjs"
// In Node 22: node docs/examples/realtime.mjs ws://127.0.0.1:8000 "a red apple on a blue background"
//             (Node 20 needs --experimental-websocket)

// Calls `show(header, bytes)` for every picture, and resolves when the whole prompt's picture has come.
export function follow(server, prompt, show, milliseconds = 30) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${server}/v1/realtime`);
    socket.binaryType = "arraybuffer";
    let header = null; // a picture follows its header
    const characters = [...prompt]; // not halves of one, which are no text

    const type = async () => {
      for (let length = 1; length <= characters.length; length++) {
        const typed = characters.slice(0, length).join("");
        socket.send(JSON.stringify({type: "session.update", session: {prompt: typed, seed: 7}}));
        socket.send(JSON.stringify({type: "generate"})); // inputs count from 1
        await new Promise((later) => setTimeout(later, milliseconds));
      }
    };

    socket.onmessage = ({data}) => {
      if (typeof data !== "string") {
        show(header, data);
        if (header.input === characters.length) { // the newest input is never dropped
          resolve();
          socket.close();
        }
        return;
      }
      const message = JSON.parse(data);
      if (message.type === "session.created") type();
      if (message.type === "image.completed") header = message;
      if (message.type === "error") reject(new Error(message.error.message));
    };
    socket.onerror = () => reject(new Error(`no connection to ${server}`));
    socket.onclose = ({code}) => reject(new Error(`closed with ${code}`)); // after `resolve` it does nothing
  });
}

if (globalThis.process?.argv[1]?.endsWith("realtime.mjs")) {
  const [server = "ws://127.0.0.1:8000", prompt = "a red apple on a blue background"] = process.argv.slice(2);
  await follow(server, prompt, ({input, latency}, bytes) => {
    console.log(`input ${input}: ${bytes.byteLength} bytes after ${Math.round(1000 * latency)} ms`);
  });
}
