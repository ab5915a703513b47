// The events that are kept of the connection that is looked at, the oldest of which go first.

const EVENTS = 5000;
const CHARACTERS = 16e6; // of them

export const log = {
  events: [],
  forgotten: 0, // the oldest, for want of room
  missed: 0, // those that this page was too slow for
  start: null, // the recording's header, and when it began
  characters: 0,

  // Begin anew, unless there is something that *header*, of events since *started*, goes on with.
  begin(header, started) {
    if (!this.events.length) this.start = { header, started };
  },

  clear() {
    this.events = [];
    this.characters = this.forgotten = this.missed = 0;
  },

  add(event) {
    event.size = 200 + (event.hex?.length ?? 0) + (event.traceback?.length ?? 0);
    this.events.push(event);
    this.characters += event.size;
    if (event.event === "gap") this.missed += event.count;
  },

  // Return how many were forgotten.
  forgetOldest() {
    const { events } = this;
    const first = events[0].event === "opened" ? 1 : 0; // what the connection is stays, for the recording
    let end = first;
    while (events.length - (end - first) > EVENTS || (this.characters > CHARACTERS && end < events.length - 1)) {
      this.characters -= events[end].size;
      end += 1;
    }
    events.splice(first, end - first);
    this.forgotten += end - first;
    return end - first;
  },

  // Return what is in the recording's format, and nothing that is ours alone.
  recording(conn) {
    const lines = [JSON.stringify(this.start.header)];
    let lost = this.forgotten;
    for (const { size, began, traceback, ...event } of this.events) {
      if (event.event === "frame" || (event.event === "opened" && lines.length > 1)) continue;
      const at = Math.round((event.at + began - this.start.started) * 1e6) / 1e6;
      lines.push(JSON.stringify({ ...event, at, conn }));
      if (lost) lines.push(JSON.stringify({ at, conn, protocol: event.protocol, event: "gap", count: lost }));
      lost = 0;
    }
    return lines.join("\n") + "\n";
  },
};
