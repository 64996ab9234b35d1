package testkit

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// Client does not follow redirects.
var Client = &http.Client{
	Timeout:       30 * time.Second,
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Answer is what a request got.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// ReadAnswer reads a response whole. It takes what Client.Do returns.
func ReadAnswer(t testing.TB, response *http.Response, err error) Answer {
	t.Helper()
	Must(t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	Must(t, err)
	return Answer{response.StatusCode, response.Header, data}
}

// SessionAnswer is the body of 200.
type SessionAnswer struct {
	AuthURL   string `json:"auth_url"`
	ExpiresAt int64  `json:"expires_at"`
	ID        string `json:"id"`
	SessionID string `json:"session_id"`
}

// ErrorAnswer is the body of application/vnd.goa.error.
type ErrorAnswer struct {
	Fault     bool   `json:"fault"`
	ID        string `json:"id"`
	Message   string `json:"message"`
	Name      string `json:"name"`
	Temporary bool   `json:"temporary"`
	Timeout   bool   `json:"timeout"`
}

// Decode reads the answer's body into v, which must have exactly its members.
func (a Answer) Decode(t testing.TB, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(a.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("decoding answer %d %q: %v", a.Status, a.Body, err)
	}
}

// EndsInNewline tells whether the body is JSON of one line, so that a shell's prompt stands below it.
func (a Answer) EndsInNewline() bool { return bytes.Index(a.Body, []byte("}\n")) == len(a.Body)-2 }

// WantError checks a refusal whole: status, media type, goa-error, the six members, and booleans that are true to the
// class. It returns the body for a look at the message.
func (a Answer) WantError(t testing.TB, status int, name string) ErrorAnswer {
	t.Helper()
	if a.Status != status {
		t.Fatalf("status = %d %s, want %d", a.Status, a.Body, status)
	}
	a.WantHeaders(t, "application/vnd.goa.error")
	var e ErrorAnswer
	a.Decode(t, &e)
	var members map[string]any
	if err := json.Unmarshal(a.Body, &members); err != nil || len(members) != 6 || !a.EndsInNewline() {
		t.Fatalf("error body %q, want six members and a newline", a.Body)
	}
	want := ErrorAnswer{
		Fault:     status == 500,
		ID:        e.ID,
		Message:   e.Message,
		Name:      name,
		Temporary: status == 429 || status == 503 || status == 504,
		Timeout:   status == 408 || status == 504,
	}
	if e != want || e.ID == "" || e.Message == "" || a.Header.Get("goa-error") != name {
		t.Fatalf("error = %+v, goa-error %q, want %+v", e, a.Header.Get("goa-error"), want)
	}
	retry := a.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(retry); status == 429 && err == nil && seconds > 0 {
		retry = "1"
	}
	if (retry == "1") != want.Temporary {
		t.Fatalf("Retry-After = %q in a %d", retry, status)
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
