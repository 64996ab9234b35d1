"""python3 consent.py show|approve|cancel SESS_ID [CONSENT_ID]"""
import hashlib, json, os, socket, sys
from urllib.parse import urlencode, urlsplit


def redis(*words):  # no TLS, no password: with those, use redis-py
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


def add(uri, members):  # no byte of the URI changes; without one there is nowhere to go
    if not uri:
        sys.exit("no URI: show the outcome, or post it to the framing page")
    return uri + ("&" if "?" in uri else "?") + urlencode(members)


action, sess_id, *consent_id = sys.argv[1:]
command = {"show": "GET", "approve": "GETDEL", "cancel": "GETDEL"}[action]
value = redis(command, os.environ["KEY_PREFIX"] + hashlib.sha256(sess_id.encode()).hexdigest())
if value is None:
    sys.exit("gone: expired, used or never there")
record = json.loads(value)
if record["v"] != 1:
    sys.exit("not a record of version 1")
if action == "show":
    print(value.decode())
elif action == "approve":
    print(add(record.get("redirect_uri"), {"consent_id": consent_id[0]}))
else:
    print(add(record.get("cancel_uri"), {
        "error": "access_denied", "error_type": "CONSENT_ENDUSER_DENIED", "error_id": record["id"],
        "error_description": "The end user did not consent.", "error_uri": "https://consent.example.com/errors#denied"}))
