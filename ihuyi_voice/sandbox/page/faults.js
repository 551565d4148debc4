// The faults of an answer, by the names of their settings, in the order of the list.
// Their words are in texts.json: fault_NAME, fault_NAME_help and fault_NAME_instead.

export const FAULTS = [
  "close_before_reading",
  "code",
  "no_answer",
  "close_after_placing",
  "truncate",
  "html_502",
  "garbage",
];
