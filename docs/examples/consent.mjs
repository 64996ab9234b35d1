// node consent.mjs show|approve|cancel SESS_ID [CONSENT_ID]
import { createHash } from "node:crypto";
import { createClient } from "redis";

const [action, sessId, consentId] = process.argv.slice(2);
const command = { show: "GET", approve: "GETDEL", cancel: "GETDEL" }[action];
const key = process.env.KEY_PREFIX + createHash("sha256").update(sessId).digest("hex");

const client = createClient({ url: process.env.REDIS_URL, socket: { reconnectStrategy: false } });
await client.on("error", console.error).connect();
const value = await client.sendCommand([command, key]);
await client.close();

if (value === null) {
  throw new Error("gone: expired, used or never there");
}
const record = JSON.parse(value);
if (record.v !== 1) {
  throw new Error("not a record of version 1");
}
if (action === "show") {
  console.log(value);
} else if (action === "approve") {
  console.log(add(record.redirect_uri, { consent_id: consentId }));
} else {
  console.log(add(record.cancel_uri, {
    error: "access_denied",
    error_type: "CONSENT_ENDUSER_DENIED",
    error_id: record.id,
    error_description: "The end user did not consent.",
    error_uri: "https://consent.example.com/errors#denied",
  }));
}

// No byte of the URI changes, as with URL() it would. Without one there is nowhere to go.
function add(uri, members) {
  if (!uri) throw new Error("no URI: show the outcome, or post it to the framing page");
  return uri + (uri.includes("?") ? "&" : "?") + new URLSearchParams(members);
}
