"""python3 consent.py show SESS_ID | approve SESS_ID CONSENT_ID | cancel SESS_ID"""
import hashlib, hmac, json, os, socket, sys
from urllib.parse import urlencode, urlsplit


def redis(*words):  # without TLS and password: use redis-py for those
    at = urlsplit(os.environ["REDIS_URL"])
    with socket.create_connection((at.hostname, at.port or 6379), timeout=1) as s, s.makefile("rwb") as f:
        f.write(b"*%d\r\n" % len(words))
        for word in map(str.encode, words):
            f.write(b"$%d\r\n%s\r\n" % (len(word), word))
        f.flush()
        head = f.readline()
        if not head.startswith(b"$"):
            sys.exit(f"redis says {head}")
        return None if head == b"$-1\r\n" else f.read(int(head[1:]))


def open_record(value):  # returns the JSON of a sealed or plain value; sealed: pip install cryptography
    if not value.startswith(b"\x01"):
        return value
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    key = hmac.digest(sess_id.encode(), b"authsession record", "sha256")
    return AESGCM(key).decrypt(value[1:13], value[13:], None)


def add(uri, members):  # changes no byte of the URI; fails if there is none
    if not uri:
        sys.exit("no URI: show the outcome, or post it to the framing page")
    return uri + ("&" if "?" in uri else "?") + urlencode(members)


# Check the arguments first, because GETDEL uses the session up.
action, sess_id, consent_id, *more = *sys.argv[1:], "", "", ""
command = {"show": "GET", "approve": "GETDEL", "cancel": "GETDEL"}.get(action)
if not command or not sess_id or any(more) or bool(consent_id) != (action == "approve"):
    sys.exit("usage: show SESS_ID | approve SESS_ID CONSENT_ID | cancel SESS_ID")
value = redis(command, os.environ["KEY_PREFIX"] + hashlib.sha256(sess_id.encode()).hexdigest())
if value is None:
    sys.exit("gone: expired, used or never there")
text = open_record(value)
record = json.loads(text)
if record["v"] != 1:
    sys.exit("not a record of version 1")
if action == "show":
    print(text.decode())
elif action == "approve":
    print(add(record.get("redirect_uri"), {"consent_id": consent_id}))
else:
    print(add(record.get("cancel_uri"), {
        "error": "access_denied", "error_type": "CONSENT_ENDUSER_DENIED", "error_id": record["id"],
        "error_description": "The end user did not consent.", "error_uri": "https://consent.example.com/errors#denied"}))
