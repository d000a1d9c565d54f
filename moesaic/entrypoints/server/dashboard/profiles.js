// The routing profiles that a chat may choose from. A choice's value is JSON: null for the server's, "" for none.

import { get } from "./api.js";
import { every, fill, STOP } from "./dom.js";

const PERIOD = 10000;

export function watchProfiles(selects) {
  return every(PERIOD, async () => {
    try {
      show(selects, await get("v1/moe/routing"));
    } catch (error) {
      if (error.status === 404) return STOP;
    }
  });
}

function show(selects, { active, profiles }) {
  const names = profiles.map((profile) => profile.name);
  const options = [[null, `the server's: ${active ?? "none"}`], ["", "none"], ...names.map((name) => [name, name])];
  for (const select of selects) {
    fill(
      select,
      options.map(([value, label]) => [JSON.stringify(value), label]),
    );
    select.closest("label").hidden = !names.length;
  }
}
