// Package testkit is what the tests of several packages share: signing keys and tokens, logs that can be read while
// they are written, answers, and waiting.
package testkit

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"

	"github.com/go-jose/go-jose/v4"
)

// Must ends the test where err is not nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// WaitFor polls until f is true.
func WaitFor(t testing.TB, atMost time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(atMost); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain for %s", atMost, what)
		}
	}
}

// RSA, EC and Ed are the keys "rsa", "ec" and "ed", made once.
var (
	RSA = sync.OnceValue(func() keytool.Key { return mustKey("rsa", jose.RS256) })
	EC  = sync.OnceValue(func() keytool.Key { return mustKey("ec", jose.ES256) })
	Ed  = sync.OnceValue(func() keytool.Key { return mustKey("ed", jose.EdDSA) })
)

func mustKey(id string, alg jose.SignatureAlgorithm) keytool.Key {
	key, err := keytool.Generate(alg)
	if err != nil {
		panic(err)
	}
	key.ID = id
	return key
}

// NewKey makes a key.
func NewKey(t testing.TB, id string, alg jose.SignatureAlgorithm) keytool.Key {
	t.Helper()
	key, err := keytool.Generate(alg)
	Must(t, err)
	key.ID = id
	return key
}

// Sign returns claims as a token by key.
func Sign(t testing.TB, key keytool.Key, claims map[string]any) string {
	t.Helper()
	token, err := key.Sign(claims)
	Must(t, err)
	return token
}

// Claims pass every check where neither JWT_ISSUER nor JWT_AUDIENCE is set.
func Claims() map[string]any {
	now := time.Now().Unix()
	return map[string]any{"client_id": "acme", "scope": bearer.Scope, "iat": now, "exp": now + 3600}
}

// With is Claims with some changed; a nil value removes one.
func With(changes map[string]any) map[string]any {
	claims := Claims()
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// WriteKeySet writes a key set to file, all at once.
func WriteKeySet(t testing.TB, file string, keys ...keytool.Key) {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, k.Public())
	}
	data, err := json.Marshal(set)
	Must(t, err)
	Must(t, os.WriteFile(file+".new", data, 0o600))
	Must(t, os.Rename(file+".new", file))
}

// Log is a log that a test can read while it is written.
type Log struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	closed bool
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, io.ErrClosedPipe
	}
	return l.buf.Write(p)
}

// Close makes each further Write fail. A process whose stderr it is has no reader any more, from its next line on.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Has tells whether text stands in the log.
func (l *Log) Has(text string) bool { return strings.Contains(l.String(), text) }

// Line is the first JSON line that has the attribute name with this value.
func (l *Log) Line(t testing.TB, name, value string) map[string]any {
	t.Helper()
	for text := range strings.SplitSeq(strings.TrimSpace(l.String()), "\n") {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("log line %q: %v", text, err)
		}
		if line[name] == value {
			return line
		}
	}
	t.Fatalf("no log line with %s %q", name, value)
	return nil
}
