// node consent.mjs show SESS_ID | approve SESS_ID CONSENT_ID | cancel SESS_ID
import { createDecipheriv, createHash, createHmac } from "node:crypto";
import { createClient, RESP_TYPES } from "redis";

// Check the arguments first, because GETDEL uses the session up.
const [action, sessId, consentId] = process.argv.slice(2);
const command = { show: "GET", approve: "GETDEL", cancel: "GETDEL" }[action];
if (!command || !sessId || !consentId !== (action !== "approve")) {
  throw new Error("usage: show SESS_ID | approve SESS_ID CONSENT_ID | cancel SESS_ID");
}
const key = process.env.KEY_PREFIX + createHash("sha256").update(sessId).digest("hex");

const client = createClient({ url: process.env.REDIS_URL, socket: { reconnectStrategy: false } });
await client.on("error", console.error).connect();
const bytes = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer }); // because a sealed record is not text
const value = await bytes.sendCommand([command, key]);
client.destroy();

if (value === null) {
  throw new Error("gone: expired, used or never there");
}
const text = open(value);
const record = JSON.parse(text);
if (record.v !== 1) {
  throw new Error("not a record of version 1");
}
if (action === "show") {
  console.log(text);
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

// Returns the record's JSON, of a sealed or a plain value.
function open(value) {
  if (value[0] !== 1) return value.toString();
  const key = createHmac("sha256", sessId).update("authsession record").digest();
  const gcm = createDecipheriv("aes-256-gcm", key, value.subarray(1, 13), { authTagLength: 16 });
  gcm.setAuthTag(value.subarray(-16));
  return Buffer.concat([gcm.update(value.subarray(13, -16)), gcm.final()]).toString();
}

// Appends to the URI's query and changes no byte of it, which URL() would. Fails if there is no URI.
function add(uri, members) {
  if (!uri) throw new Error("no URI: show the outcome, or post it to the framing page");
  return uri + (uri.includes("?") ? "&" : "?") + new URLSearchParams(members);
}
