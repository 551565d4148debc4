// The faults as the page names them: the setting, its title, what it does, and what came instead of the answer.

export const FAULTS = [
  ["close_before_reading", "Close unread", "Not placed; the connection closes", "closed unread"],
  ["code", "Refuse with", "Not placed; this code is answered", "a code set by chaos"],
  ["no_answer", "Never answer", "Placed; the caller waits in vain", "never answered"],
  [
    "close_after_placing",
    "Close after placing",
    "Placed; no answer, the connection closes",
    "closed without an answer",
  ],
  ["truncate", "Half an answer", "Placed; the body ends in the middle", "half an answer"],
  ["html_502", "502 page", "Placed; a proxy’s page for an answer", "a 502 page"],
  ["garbage", "Garbage", "Placed; bytes that cannot be read", "garbage"],
];
