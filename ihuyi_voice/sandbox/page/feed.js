// The stream of what happens: nothing missed and nothing twice, whatever becomes of the connection.

const RETRY_MS = 1000;
// A browser keeps six connections to a host, and a stream holds one: a tab that
// nobody looks at gives its own back, or the seventh would never load.
const HIDDEN_MS = 3000;

/**
 * Call `told` with each event, and `state` with "live" or "lost".
 * The browser reconnects by itself and says how far it has read; where it
 * gives up, because the answer was no stream, this does the same.
 */
export function follow(told, state) {
  let read = "";
  let source = null;
  let retrying = 0;
  let leaving = 0;

  function connect() {
    disconnect();
    const stream = new EventSource(`/_sandbox/events?after=${encodeURIComponent(read)}`);
    source = stream;
    stream.onopen = () => state("live");
    stream.onmessage = (event) => {
      read = event.lastEventId;
      told(JSON.parse(event.data));
    };
    stream.onerror = () => {
      state("lost");
      if (stream.readyState === EventSource.CLOSED) retrying = setTimeout(connect, RETRY_MS);
    };
  }

  function disconnect() {
    clearTimeout(retrying);
    source?.close();
    source = null;
  }

  function look() {
    clearTimeout(leaving);
    if (document.hidden) leaving = setTimeout(disconnect, HIDDEN_MS);
    else if (source === null) connect();
  }

  connect();
  look();
  document.addEventListener("visibilitychange", look);
  addEventListener("pagehide", () => {
    clearTimeout(leaving);
    disconnect();
  });
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    connect();
    look();
  });
}
