// The stream of what happens: nothing missing and nothing twice, whatever becomes of the connection.

const RETRY_MS = 1000;

/**
 * Call `told` with each event, and `state` with "live" or "lost".
 * The browser reconnects by itself and says how far it has read; where it
 * gives up, because the answer was no stream, this does the same.
 */
export function follow(told, state) {
  let read = "";
  let source = null;

  function connect() {
    source = new EventSource(`/_sandbox/events?after=${encodeURIComponent(read)}`);
    source.onopen = () => state("live");
    source.onmessage = (event) => {
      read = event.lastEventId;
      told(JSON.parse(event.data));
    };
    source.onerror = () => {
      state("lost");
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    };
  }

  connect();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => {
    if (event.persisted) connect();
  });
}
