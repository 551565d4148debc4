// The stream of events. Each connection begins with a snapshot, so a lost one loses nothing.

const RETRY_MS = 1000;
// A browser keeps six connections to a host, and a stream holds one: a hidden tab
// closes its own, or the seventh tab would never load.
const HIDDEN_MS = 3000;

/**
 * Call `onEvent` with each event, and `state` with "live" or "lost".
 * The browser reconnects by itself; where it gives up, because the answer was no
 * stream, this connects again.
 */
export function follow(onEvent, state) {
  let source = null;
  let retrying = 0;
  let leaving = 0;

  function connect() {
    disconnect();
    const stream = new EventSource("/_sandbox/events");
    source = stream;
    stream.onopen = () => state("live");
    stream.onmessage = (event) => onEvent(JSON.parse(event.data));
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
