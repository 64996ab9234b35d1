// Package testkit has what the tests of several packages share: signing keys, tokens, logs, answers and waiting.
package testkit

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"

	"github.com/go-jose/go-jose/v4"
)

// Must fails the test at once if err is not nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// WaitFor polls until f returns true, and fails the test after limit.
func WaitFor(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain for %s", limit, what)
		}
	}
}

// RSA, EC and Ed return the keys "rsa", "ec" and "ed", which are made once.
var (
	RSA = sync.OnceValue(func() keytool.Key { return NewKey(nil, "rsa", jose.RS256) })
	EC  = sync.OnceValue(func() keytool.Key { return NewKey(nil, "ec", jose.ES256) })
	Ed  = sync.OnceValue(func() keytool.Key { return NewKey(nil, "ed", jose.EdDSA) })
)

// NewKey returns a new key. It panics if alg is none of bearer.Algorithms.
func NewKey(_ testing.TB, id string, alg jose.SignatureAlgorithm) keytool.Key {
	key, err := keytool.Generate(alg)
	if err != nil {
		panic(err)
	}
	key.ID = id
	return key
}

// Sign returns claims as a token signed with key.
func Sign(t testing.TB, key keytool.Key, claims map[string]any) string {
	t.Helper()
	token, err := key.Sign(claims)
	Must(t, err)
	return token
}

// Claims returns claims that pass every check unless JWT_ISSUER or JWT_AUDIENCE is set.
func Claims() map[string]any {
	now := time.Now().Unix()
	return map[string]any{"client_id": "acme", "scope": bearer.Scope, "iat": now, "exp": now + 3600}
}

// With returns Claims with changes; a nil value removes a claim.
func With(changes map[string]any) map[string]any {
	claims := Claims()
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// WriteKeySet replaces file with the key set of keys in one step.
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

// Log is a log that a test reads while it is written. It is safe for concurrent use.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Has reports whether the log contains text.
func (l *Log) Has(text string) bool { return strings.Contains(l.String(), text) }

// Line returns the first line whose attribute name has this value, and fails the test if a line before it is not JSON.
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

// Client does not follow redirects.
var Client = &http.Client{
	Timeout:       30 * time.Second,
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Answer is a response with its body.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// ReadAnswer reads a response and closes it. It takes what Client.Do returns.
func ReadAnswer(t testing.TB, response *http.Response, err error) Answer {
	t.Helper()
	Must(t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	Must(t, err)
	return Answer{response.StatusCode, response.Header, data}
}

// SessionAnswer is the body of a 200.
type SessionAnswer struct {
	AuthURL   string `json:"auth_url"`
	ExpiresAt int64  `json:"expires_at"`
	ID        string `json:"id"`
	SessionID string `json:"session_id"`
}

// ErrorAnswer is a body of application/vnd.goa.error.
type ErrorAnswer struct {
	Fault     bool   `json:"fault"`
	ID        string `json:"id"`
	Message   string `json:"message"`
	Name      string `json:"name"`
	Temporary bool   `json:"temporary"`
	Timeout   bool   `json:"timeout"`
}

// Decode decodes the body into v. A member that v does not have fails the test.
func (a Answer) Decode(t testing.TB, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(a.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("decoding answer %d %q: %v", a.Status, a.Body, err)
	}
}

// EndsInNewline reports whether the body is one line of JSON that ends in a newline.
func (a Answer) EndsInNewline() bool { return bytes.Index(a.Body, []byte("}\n")) == len(a.Body)-2 }

// WantError checks status, headers and the six members of an error, and returns its body. The booleans and Retry-After
// must be those of the status.
func (a Answer) WantError(t testing.TB, status int, name string) (e ErrorAnswer) {
	t.Helper()
	if a.Status != status {
		t.Fatalf("status = %d %s, want %d", a.Status, a.Body, status)
	}
	a.WantHeaders(t, "application/vnd.goa.error")
	a.Decode(t, &e)
	var members map[string]any
	if err := json.Unmarshal(a.Body, &members); err != nil || len(members) != 6 || !a.EndsInNewline() {
		t.Fatalf("error body = %q, want six members and a newline", a.Body)
	}
	want := ErrorAnswer{
		ID: e.ID, Message: e.Message, Name: name,
		Fault:     status == 500,
		Temporary: status == 429 || status == 503 || status == 504,
		Timeout:   status == 408 || status == 504,
	}
	if e != want || e.ID == "" || e.Message == "" || a.Header.Get("goa-error") != name {
		t.Fatalf("error = %+v, goa-error %q, want %+v", e, a.Header.Get("goa-error"), want)
	}
	seconds, _ := strconv.Atoi(a.Header.Get("Retry-After"))
	if (seconds > 0) != want.Temporary || seconds > 1 && status != 429 {
		t.Fatalf("Retry-After = %q in a %d", a.Header.Get("Retry-After"), status)
	}
	return e
}

var requestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// WantHeaders checks the headers that every answer has.
func (a Answer) WantHeaders(t testing.TB, contentType string) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Type": contentType, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
	} {
		if got := a.Header.Get(name); got != want {
			t.Fatalf("%s = %q, want %q", name, got, want)
		}
	}
	if id := a.Header.Get("X-Request-Id"); !requestID.MatchString(id) {
		t.Fatalf("X-Request-Id = %q", id)
	}
}
