package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/testkit"

	"golang.org/x/time/rate"
)

// headerTimeout is newHTTPServer's for a request's header.
const headerTimeout = 5 * time.Second

func TestRoutes(t *testing.T) {
	ts := newTestServer(t, nil)
	auth := ts.authorization(t)
	tests := []struct {
		method, target string
		want           int
		allow          string
	}{
		{"POST", "/auth/session", 200, ""},
		{"POST", "/v1/auth/session", 200, ""},
		{"POST", "/auth/session?x=1&end_user_id=other", 200, ""},
		{"POST", "/auth/session?", 200, ""},
		{"POST", "http://foreign.example/auth/session", 200, ""},

		{"GET", "/auth/session", 405, "POST"},
		{"PUT", "/auth/session", 405, "POST"},
		{"DELETE", "/auth/session", 405, "POST"},
		{"PATCH", "/auth/session", 405, "POST"},
		{"HEAD", "/auth/session", 405, "POST"},
		{"TRACE", "/auth/session", 405, "POST"},
		{"OPTIONS", "/auth/session", 405, "POST"},
		{"CONNECT", "/auth/session", 405, "POST"},
		{"FOO", "/auth/session", 405, "POST"},
		{"post", "/auth/session", 405, "POST"},
		{"Post", "/v1/auth/session", 405, "POST"},
		{"GET", "/v1/auth/session", 405, "POST"},
		{"POST", "/livez", 405, "GET, HEAD"},
		{"OPTIONS", "/readyz", 405, "GET, HEAD"},
		{"FOO", "/readyz", 405, "GET, HEAD"},
		{"get", "/livez", 405, "GET, HEAD"},

		{"CONNECT", "foreign.example:443", 404, ""},
		{"OPTIONS", "*", 404, ""},
		{"POST", "/", 404, ""},
		{"HEAD", "/", 404, ""},
		{"FOO", "/", 404, ""},
		{"POST", "/auth/session/", 404, ""},
		{"POST", "//auth/session", 404, ""},
		{"POST", "/auth//session", 404, ""},
		{"POST", "/x/../auth/session", 404, ""},
		{"POST", "/./auth/session", 404, ""},
		{"POST", "/AUTH/session", 404, ""},
		{"POST", "/auth/session;x=1", 404, ""},
		{"POST", "/%61uth/session", 404, ""},
		{"POST", "/auth%2Fsession", 404, ""},
		{"POST", "/auth/session%00", 404, ""},
		{"POST", "/auth/session%20", 404, ""},
		{"POST", "/auth/session%3Fx", 404, ""},
		{"POST", "/v1/v1/auth/session", 404, ""},
		{"POST", "/v2/auth/session", 404, ""},
		{"POST", "/v1/livez", 404, ""},
		{"POST", "/metrics", 404, ""},
		{"GET", "/livez/", 404, ""},
		{"GET", "/debug/pprof/", 404, ""},
		{"GET", "/%6Civez", 404, ""},
	}
	names := map[int]string{404: "not_found", 405: "method_not_allowed"}
	sessions := 0
	for _, test := range tests {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			line := test.method + " " + test.target + " HTTP/1.1"
			head := message(line, "Host: foreign.example", "X-Forwarded-Host: foreign.example", auth, goodLength)
			a := ts.exchange(t, head+goodBody)
			switch {
			case test.want == 200:
				sessions++
				ts.wantSession(t, a)
			case test.method == "HEAD":
				a.WantHeaders(t, goaError)
				if a.Status != test.want || len(a.Body) > 0 {
					t.Errorf("status = %d with %d bytes, want %d and none", a.Status, len(a.Body), test.want)
				}
			default:
				a.WantError(t, test.want, names[test.want])
			}
			if got := a.Header.Get("Allow"); got != test.allow {
				t.Errorf("Allow = %q, want %q", got, test.allow)
			}
			if got := a.Header.Get("Location"); got != "" {
				t.Errorf("it redirects to %s", got)
			}
		})
	}
	ts.wantSessions(t, sessions)
}

// A connection that passes over reads of one byte loses none, wherever a request is cut.
func TestConn(t *testing.T) {
	ts := newTestServer(t, nil)
	request := ts.goodRequest(t)
	head, body, _ := strings.Cut(request, "\r\n\r\n")
	// net/http has a buffer of 4096 bytes, and reads what has room behind the line it is at.
	const buffer = 4096
	long := head + "\r\nX-Long: " + strings.Repeat("a", 2*buffer) + "\r\n\r\n" + body
	full := len(head+"\r\n") + buffer
	// Of a part's pause nothing depends but how much the row tests: it mostly makes the part a packet of its own.
	const pause, none = 20 * time.Millisecond, 0
	for name, test := range map[string]struct {
		parts []string
		pause time.Duration // after each part
		want  []int         // the answers
	}{
		"byte by byte":          {strings.Split(request, ""), none, []int{200}},
		"last byte":             {[]string{request[:len(request)-1], request[len(request)-1:]}, pause, []int{200}},
		"room for one byte":     {[]string{long[:buffer], long[buffer : full-1], long[full-1:]}, pause, []int{200}},
		"room for none":         {[]string{long[:buffer], long[buffer:full], long[full:]}, pause, []int{200}},
		"body right behind":     {[]string{head + "\r\n\r\n", body}, pause, []int{200}},
		"pipelined, and a byte": {[]string{request + request[:1], request[1:]}, pause, []int{200, 200}},
		"body of one byte": {[]string{strings.Replace(head, goodLength, "Content-Length: 1", 1) + "\r\n\r\n", "x"},
			pause, []int{400}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ts.dial(t)
			_ = w.SetNoDelay(true)
			for _, part := range test.parts {
				w.send(t, part)
				time.Sleep(test.pause)
			}
			for _, want := range test.want {
				a := w.answer(t, "POST")
				if want == 200 {
					ts.wantSession(t, a)
				} else {
					a.WantError(t, want, "bad_request")
				}
			}
			w.send(t, request) // the connection is still good
			ts.wantSession(t, w.answer(t, "POST"))
		})
	}
}

// What net/http refuses by itself keeps its own answer, and never reaches a handler.
func TestServerAnswers(t *testing.T) {
	ts := newTestServer(t, nil)
	auth, length := ts.authorization(t), goodLength
	const post, host, chunked = "POST /auth/session HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"
	with := func(lines ...string) string { return message(append([]string{post, host, auth}, lines...)...) }
	good := func(lines ...string) string { return with(append([]string{length}, lines...)...) + goodBody }
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(goodBody), goodBody)
	small := slices.Repeat([]string{"a: bcd"}, 2000)
	usual := slices.Repeat([]string{"X-Usual-Header: of some forty bytes in all"}, 20)
	long := strings.Repeat("x", 16<<10)
	tokenOf8K := "Authorization: Bearer " + longToken(t, 8<<10)
	const own, ours = false, true
	tests := []struct {
		name, text string
		want       int
		ours       bool // the answer is a handler's
	}{
		{"no Host", message(post, auth, length) + goodBody, 400, own},
		{"two Hosts", good("Host: y"), 400, own},
		{"bad request line", message("POST /auth/session", host), 400, own},
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, own},
		{"space in the target", message("POST /auth/ session HTTP/1.1", host), 400, own},
		{"bad escape in the target", message("POST /auth/session%zz HTTP/1.1", host, auth, length) + goodBody, 400, own},
		{"HTTP/3.0", message("POST /auth/session HTTP/3.0", host, auth, length) + goodBody, 505, own},
		{"another expectation", with(length, "Expect: 200-ok"), 417, own},
		{"Upgrade: h2c", good("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c",
			"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), 200, ours},

		{"header of 16 KB", good("X-Long: " + long), 431, own},
		{"target of 16 KB", message("POST /auth/session?"+long+" HTTP/1.1", host, auth, length) + goodBody, 431, own},
		{"2,000 small headers", good(small...), 431, own},
		{"token of 8 KiB among usual headers",
			message(append([]string{post, host, tokenOf8K, length}, usual...)...) + goodBody, 200, ours},

		{"Content-Length twice, equal", good(length), 200, ours},
		{"Content-Length twice, different", good("Content-Length: 5"), 400, own},
		{"Content-Length list", with(length+", 21") + goodBody, 400, own},
		{"Content-Length with a sign", with(fmt.Sprintf("Content-Length: +%d", len(goodBody))) + goodBody, 400, own},
		{"Content-Length below zero", with("Content-Length: -1") + goodBody, 400, own},
		{"Content-Length 1e20", with("Content-Length: 1e20") + goodBody, 400, own},
		{"Content-Length beyond 64 bits", with("Content-Length: 100000000000000000000") + goodBody, 400, own},

		{"chunked", with(chunked) + chunks, 200, ours},
		{"xchunked", with("Transfer-Encoding: xchunked") + chunks, 501, own},
		{"gzip, chunked", with("Transfer-Encoding: gzip, chunked") + chunks, 501, own},
		{"two Transfer-Encoding lines", with(chunked, chunked) + chunks, 501, own},
		{"space before the colon", with("Transfer-Encoding : chunked") + chunks, 400, own},
		{"folded header", good("X-A: b", "\tc"), 200, ours},
		{"chunked in HTTP/1.0", message("POST /auth/session HTTP/1.0", host, auth, chunked) + chunks, 400, ours},
		{"HTTP/1.0", message("POST /auth/session HTTP/1.0", host, auth, length) + goodBody, 200, ours},
	}
	sessions := 0
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := ts.exchange(t, test.text)
			switch {
			case test.want == 200:
				sessions++
				ts.wantSession(t, a)
			case test.ours:
				a.WantError(t, test.want, "bad_request")
			case a.Status != test.want || a.Header.Get("Goa-Error") != "" || a.Header.Get("X-Request-Id") != "":
				t.Errorf("answer = %d %v %s, want net/http's own %d", a.Status, a.Header, a.Body, test.want)
			}
		})
	}
	ts.wantSessions(t, sessions)
}

// A refusal waits for no body. A body that is there is passed over; one that is not, or is broken, ends the connection,
// since there is no telling where the next request begins.
func TestRefusalBeforeBody(t *testing.T) {
	ts := newTestServer(t, nil)
	const post, host, bad = "POST /auth/session HTTP/1.1", "Host: x", "Authorization: Bearer x.y.z"
	good, chunked := ts.authorization(t), "Transfer-Encoding: chunked"
	next := message("GET /livez HTTP/1.1", host)
	large := "4b000\r\n" + strings.Repeat(" ", 307200) + "\r\n0\r\n\r\n"
	names := map[int]string{400: "bad_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed",
		415: "unsupported_media_type"}
	tests := []struct {
		name, head string
		before     string // sent with the head
		after      string // sent after the answer
		want       int
		reuse      bool // the connection serves another request
	}{
		{"no body", message(post, host, bad), "", "", 401, true},
		{"whole body sent", message(post, host, bad, goodLength), goodBody, "", 401, true},
		{"whole body sent, good token", message(post, host, good, "Content-Length: 2"), "[]", "", 400, true},
		{"body unsent", message(post, host, bad, goodLength), "", goodBody, 401, false},
		{"body half sent", message(post, host, bad, goodLength), goodBody[:5], goodBody[5:], 401, false},
		{"chunks unsent", message(post, host, bad, chunked), "", "3\r\nabc\r\n0\r\n\r\n", 401, false},
		{"body unsent, wrong type", message(post, host, good, goodLength, "Content-Type: text/plain"),
			"", goodBody, 415, false},
		{"body unsent, wrong path", message("POST /nope HTTP/1.1", host, good, goodLength), "", goodBody, 404, false},
		{"body unsent, wrong method", message("PUT /auth/session HTTP/1.1", host, good, goodLength),
			"", goodBody, 405, false},
		{"300 KiB announced", message(post, host, bad, "Content-Length: 307200"), "", "", 401, false},
		{"300 KiB in a chunk", message(post, host, bad, chunked), "", large, 401, false},
		{"broken chunk", message(post, host, bad, chunked), "zz\r\n", "", 401, false},
		{"broken chunk later", message(post, host, bad, chunked), "", "1\r\nx\r\nzz\r\n", 401, false},
		{"broken chunk, wrong path", message("POST /nope HTTP/1.1", host, chunked), "zz\r\n", "", 404, false},
		{"broken chunk, good token", message(post, host, good, chunked), "zz\r\n", "", 400, false},
		{"broken end of a chunk, good token", message(post, host, good, chunked), "1\r\nxyz\r\n", "", 400, false},
		{"broken size of a chunk, good token", message(post, host, good, chunked), "fffffffffffffffff\r\n", "", 400, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := ts.dial(t)
			start := time.Now()
			w.send(t, test.head+test.before)
			w.answer(t, "POST").WantError(t, test.want, names[test.want])
			if took := time.Since(start); took > bodyTimeout/2 {
				t.Errorf("answered after %s", took)
			}
			_, _ = io.WriteString(w, test.after+next) // may be closed
			if !test.reuse {
				w.wantClosed(t)
				return
			}
			if a := w.answer(t, "GET"); a.Status != 200 {
				t.Errorf("GET /livez on the same connection = %d, want 200", a.Status)
			}
		})
	}
	ts.wantSessions(t, 0)
}

// A caller that is refused keeps its connection as often as it likes, unless its body is still to come: then the answer
// does not wait, and what comes late is no next request.
func TestRefusedConnection(t *testing.T) {
	ts := newTestServer(t, nil)
	w := ts.dial(t)
	refused := func(length int, body string) testkit.Answer {
		t.Helper()
		w.send(t, message("POST /auth/session HTTP/1.1", "Host: x", "Authorization: Bearer a.b.c",
			fmt.Sprintf("Content-Length: %d", length))+body)
		a := w.answer(t, "POST")
		a.WantError(t, 401, "unauthorized")
		return a
	}
	for range 200 {
		if a := refused(len(goodBody), goodBody); a.Header.Get("Connection") != "" {
			t.Fatalf("answer to a whole request says Connection: %s", a.Header.Get("Connection"))
		}
	}
	start := time.Now()
	a := refused(100, "{")
	if took := time.Since(start); took > time.Second {
		t.Errorf("answer to a request whose body is still to come: after %s, want at once", took)
	}
	if got := a.Header.Get("Connection"); got != "close" {
		t.Errorf("answer to a request whose body is still to come: Connection = %q, want close", got)
	}
	_, _ = io.WriteString(w, message("GET /livez HTTP/1.1", "Host: x")) // fails where the server has closed already
	w.wantClosed(t)
	if ts.log.Has("panic") {
		t.Errorf("log has a panic:\n%s", ts.log)
	}
}

// A body that nobody reads is not waited for, and a chunked request is its connection's last: it may have had a
// Content-Length too.
func TestLastRequest(t *testing.T) {
	ts := newTestServer(t, nil)
	const length, chunked = "Content-Length: 1000", "Transfer-Encoding: chunked"
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(goodBody), goodBody)
	post := []string{"POST /auth/session HTTP/1.1", "Host: x", ts.authorization(t)}
	for name, text := range map[string]string{
		"GET with a body announced":     message("GET /livez HTTP/1.1", "Host: x", length),
		"HEAD with a body announced":    message("HEAD /readyz HTTP/1.1", "Host: x", length),
		"GET with a chunked body":       message("GET /openapi.yaml HTTP/1.1", "Host: x", chunked),
		"chunked":                       message(append(post, chunked)...) + chunks,
		"chunked and Content-Length":    message(append(post, chunked, goodLength)...) + chunks,
		"Content-Length and chunked":    message(append(post, goodLength, chunked)...) + chunks,
		"both, and what smugglers send": message(append(post, "Content-Length: 3", chunked)...) + chunks + "GET",
	} {
		t.Run(name, func(t *testing.T) {
			w := ts.dial(t)
			start := time.Now()
			w.send(t, text)
			method, _, _ := strings.Cut(text, " ")
			a := w.answer(t, method)
			if took := time.Since(start); a.Status != 200 || took > time.Second {
				t.Errorf("answer = %d %s after %s, want 200 at once", a.Status, a.Body, took)
			}
			if got := a.Header.Get("Connection"); got != "close" {
				t.Errorf("Connection = %q, want close", got)
			}
			w.wantClosed(t)
		})
	}
}

// Where too many are refused for their client's share, a connection waits before its next request, but not before its
// answer, and not a gateway's.
func TestSlowDown(t *testing.T) {
	ts := newTestServer(t, map[string]string{"MAX_IN_FLIGHT": "4"}, func(s *server) {
		s.overShare = rate.NewLimiter(0, 0)
	})
	for range 3 { // all that one client may have
		testkit.Must(t, ts.inFlight.Acquire("acme"))
	}
	for name, test := range map[string]struct {
		header string
		slow   bool
	}{
		"caller":  {"X-A: b", true},
		"gateway": {"X-Forwarded-For: 192.0.2.1", false},
	} {
		t.Run(name, func(t *testing.T) {
			request := message("POST /auth/session HTTP/1.1", "Host: x", ts.authorization(t), goodLength, test.header) + goodBody
			w := ts.dial(t)
			start := time.Now()
			w.send(t, request)
			w.answer(t, "POST").WantError(t, 503, "unavailable")
			first := time.Since(start)
			w.send(t, request)
			w.answer(t, "POST").WantError(t, 503, "unavailable")
			second := time.Since(start) - first
			if slow := second > 300*time.Millisecond; slow != test.slow || first > 300*time.Millisecond {
				t.Errorf("answers took %s and %s, want the second slow: %t", first, second, test.slow)
			}
		})
	}
}

func TestExpectContinue(t *testing.T) {
	ts := newTestServer(t, nil)
	head := func(authorization string) string {
		return message("POST /auth/session HTTP/1.1", "Host: x", authorization, goodLength, "Expect: 100-continue")
	}
	w := ts.dial(t)
	w.send(t, head(ts.authorization(t)))
	if a := w.answer(t, "POST"); a.Status != 100 {
		t.Fatalf("POST with Expect and a good token = %d, want 100", a.Status)
	}
	w.send(t, goodBody)
	ts.wantSession(t, w.answer(t, "POST"))

	w = ts.dial(t)
	w.send(t, head("Authorization: Bearer x.y.z"))
	w.answer(t, "POST").WantError(t, 401, "unauthorized")
	_ = w.CloseWrite()
	w.wantClosed(t) // and no late 100
}

func TestPanic(t *testing.T) {
	var calls atomic.Int32
	ts := newTestServer(t, nil, func(s *server) {
		s.now = func() time.Time {
			switch calls.Add(1) {
			case 1:
				panic("what went wrong")
			case 2:
				panic(http.ErrAbortHandler)
			}
			return time.Now()
		}
	})
	request := ts.goodRequest(t)
	w := ts.dial(t)
	w.send(t, request)
	a := w.answer(t, "POST")
	if bytes.Contains(a.Body, []byte("what went wrong")) {
		t.Errorf("the answer %s tells of the panic", a.Body)
	}
	_, line := ts.wantRefused(t, a, 500, "fault")
	stack, _ := line["stack"].(string)
	if line["cause"] != "panic: what went wrong" || !strings.Contains(stack, "createSession") {
		t.Errorf("log line = %v, want the panic and its stack", line)
	}

	w.send(t, request) // the connection is still good
	w.wantClosed(t)    // and aborted, without an answer

	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
	if n := ts.inFlight.InUse(); n != 0 {
		t.Errorf("%d requests in work after all have ended", n)
	}
	for what, want := range map[string]int{`"stack"`: 1, "http: panic": 0} {
		if n := strings.Count(ts.log.String(), what); n != want {
			t.Errorf("the log has %s %d times, want %d", what, n, want)
		}
	}
}

// Probes ask all the time: only what they fail with is worth a line.
func TestHealthLog(t *testing.T) {
	ts := newTestServer(t, nil)
	level := func(method, path string) any { return ts.logged(t, ts.do(t, method, path, nil, nil))["level"] }
	for _, path := range []string{"/livez", "/readyz"} {
		for _, method := range []string{"GET", "HEAD"} {
			if got := level(method, path); got != "DEBUG" {
				t.Errorf("%s %s is logged as %v, want DEBUG", method, path, got)
			}
		}
	}
	if got := level("GET", "/openapi.yaml"); got != "INFO" {
		t.Errorf("GET /openapi.yaml is logged as %v, want INFO", got)
	}
	if got := level("POST", "/livez"); got != "INFO" {
		t.Errorf("POST /livez is logged as %v, want INFO", got)
	}
	ts.draining.Store(true)
	if got := level("GET", "/readyz"); got != "ERROR" {
		t.Errorf("GET /readyz is logged as %v while shutting down, want ERROR", got)
	}
}

func TestRequestLog(t *testing.T) {
	ts := newTestServer(t, nil)
	token := ts.token(t)
	const path = "/auth/session?access_token=SECRET-query"
	good := `{"end_user_id":"SECRET-user","redirect_uri":"https://a.example/?SECRET-r",` +
		`"cancel_uri":"https://a.example/?SECRET-c","x":"SECRET-x"}`
	bad := strings.Replace(good, "https:", "httpx:", 1)
	header := func(token string) http.Header {
		return http.Header{"Authorization": {"Bearer " + token}, "X-Forwarded-For": {"203.0.113.7"},
			"True-Client-Ip": {"203.0.113.7"}, "X-Real-Ip": {"203.0.113.7"}, "Forwarded": {"for=203.0.113.7"},
			"Cookie": {"SECRET-cookie"}, "User-Agent": {"SECRET-agent"}}
	}
	always := []string{"time", "level", "msg", "request_id", "method", "route", "remote_ip", "status", "duration_us"}
	made := append(slices.Clone(always), "client_id", "kid", "session")
	failed := append(slices.Clone(always), "error", "error_id", "cause")
	and := func(members []string, more ...string) []string { return slices.Concat(members, more) }
	tests := []struct {
		name, path, token, body string
		status                  int
		route                   string
		members                 []string
	}{
		{"created", path, token, good, 200, "/auth/session", and(made, "unknown_members")},
		{"created under v1", "/v1" + path, token, goodBody, 200, "/v1/auth/session", made},
		{"bad field", path, token, bad, 400, "/auth/session", and(failed, "client_id", "kid", "unknown_members")},
		{"bad token", path, "SECRET-token.b.c", good, 401, "/auth/session", failed},
		{"no route", "/SECRET-path" + path, token, good, 404, "", failed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := ts.do(t, "POST", test.path, header(test.token), strings.NewReader(test.body))
			line := ts.logged(t, a)
			if got := slices.Sorted(maps.Keys(line)); !slices.Equal(got, slices.Sorted(slices.Values(test.members))) {
				t.Errorf("log line has %v, want %v", got, test.members)
			}
			for name, want := range map[string]any{"msg": "request", "method": "POST", "route": test.route,
				"remote_ip": "127.0.0.1", "status": float64(test.status), "level": "INFO"} {
				if line[name] != want {
					t.Errorf("%s = %v, want %v", name, line[name], want)
				}
			}
			if us, ok := line["duration_us"].(float64); !ok || us < 0 || us > 10_000_000 {
				t.Errorf("duration_us = %v", line["duration_us"])
			}
			if test.status == 200 {
				var s testkit.SessionAnswer
				a.Decode(t, &s)
				if line["session"] != s.ID || line["client_id"] != "acme" {
					t.Errorf("session = %v, client_id = %v, want %s, acme", line["session"], line["client_id"], s.ID)
				}
				if ts.log.Has(s.SessionID) {
					t.Errorf("the log has the session_id")
				}
				return
			}
			var e testkit.ErrorAnswer
			a.Decode(t, &e)
			if line["error"] != e.Name || line["error_id"] != e.ID {
				t.Errorf("error = %v, %v, want %s, %s", line["error"], line["error_id"], e.Name, e.ID)
			}
		})
	}
	for _, secret := range []string{"SECRET", token, strings.Split(token, ".")[1], "203.0.113.7", "eu_1"} {
		if ts.log.Has(secret) {
			t.Errorf("the log has %q: %s", secret, ts.log)
		}
	}
}

// Of what a caller chose the log has 64 bytes of printable ASCII.
func TestRequestLogPrintable(t *testing.T) {
	ts := newTestServer(t, nil)
	long := strings.Repeat("M", 15_000)
	for _, test := range []struct{ text, member, want string }{
		{message(long[:8_000]+" /livez HTTP/1.1", "Host: x"), "method", long[:64]},
		{message("POST /auth/session HTTP/1.1", "Host: x", goodLength,
			"Authorization: Bearer "+ts.tokenOf(t, strings.Repeat("c", 60)+"\u009b2J\u202e")) + goodBody,
			"client_id", strings.Repeat("c", 60) + `\u009b2J`},
	} {
		line := ts.logged(t, ts.exchange(t, test.text))
		if line[test.member] != test.want {
			t.Errorf("%s = %q, want %q", test.member, line[test.member], test.want)
		}
	}
}

func TestRequestID(t *testing.T) {
	ts := newTestServer(t, nil)
	long := strings.Repeat("x", 64)
	for id, keep := range map[string]bool{
		"a": true, "0123-abc_DEF.9": true, long: true, "": false, long + "x": false, "a b": false, "a/b": false,
		"a,b": false, `a"b`: false, "a:b": false, "é": false, "a\tb": false, "{}": false,
	} {
		for _, path := range []string{"/livez", "/readyz", "/nope", "/auth/session"} {
			a := ts.do(t, "GET", path, http.Header{"X-Request-Id": {id}}, nil)
			got := a.Header["X-Request-Id"]
			if len(got) != 1 || (got[0] == id) != keep || !validRequestID(got[0]) {
				t.Errorf("GET %s with X-Request-Id %q has %q, want it kept %t", path, id, got, keep)
			}
		}
	}
	first, second := ts.do(t, "GET", "/livez", nil, nil), ts.do(t, "GET", "/livez", nil, nil)
	if first.Header.Get("X-Request-Id") == second.Header.Get("X-Request-Id") {
		t.Errorf("two requests have the X-Request-Id %q", first.Header.Get("X-Request-Id"))
	}
}

// All that has to wait for a time limit waits for it at the same time.
func TestSlowCallers(t *testing.T) {
	ts := newTestServer(t, nil)
	var running sync.WaitGroup
	defer running.Wait()
	start := func(name string, f func(*testing.T)) { running.Go(func() { t.Run(name, f) }) }
	good, bad := ts.authorization(t), "Authorization: Bearer x.y.z"
	const post, host, chunked = "POST /auth/session HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"

	bodies := map[string]struct {
		text    string
		dribble string // sent on, piece by piece, for as long as it lasts
	}{
		"nothing of a body":  {message(post, host, good, "Content-Length: 22"), ""},
		"half of a body":     {message(post, host, good, "Content-Length: 22") + goodBody[:11], ""},
		"all but a byte":     {message(post, host, good, fmt.Sprintf("Content-Length: %d", len(goodBody)+1)) + goodBody, ""},
		"no chunk":           {message(post, host, good, chunked), ""},
		"no last chunk":      {message(post, host, good, chunked) + "16\r\n" + goodBody + "\r\n", ""},
		"dribbled body":      {message(post, host, good, "Content-Length: 60000"), " "},
		"dribbled chunks":    {message(post, host, good, chunked), "1\r\n \r\n"},
		"waits for 100 only": {message(post, host, good, "Content-Length: 22", "Expect: 100-continue"), ""},
	}
	for name, test := range bodies {
		start(name, func(t *testing.T) {
			w := ts.dial(t)
			began := time.Now()
			w.send(t, test.text)
			if test.dribble != "" {
				defer w.dribble(test.dribble)()
			}
			a := w.answer(t, "POST")
			if a.Status == 100 {
				a = w.answer(t, "POST")
			}
			took := time.Since(began)
			ts.wantRefused(t, a, 408, "timeout")
			if took < bodyTimeout-time.Second || took > bodyTimeout+3*time.Second {
				t.Errorf("408 after %s, want %s", took, bodyTimeout)
			}
			if got := a.Header.Get("Connection"); got != "close" {
				t.Errorf("Connection = %q, want close", got)
			}
			w.wantClosed(t)
		})
	}

	// What is refused at once is refused at once, and what then comes is no request.
	start("refused, and the body comes too late", func(t *testing.T) {
		w := ts.dial(t)
		began := time.Now()
		w.send(t, message(post, host, bad, "Content-Length: 22")+goodBody[:11])
		w.answer(t, "POST").WantError(t, 401, "unauthorized")
		if took := time.Since(began); took > bodyTimeout/2 {
			t.Errorf("401 after %s", took)
		}
		if _, err := w.in.ReadByte(); err == nil {
			t.Error("something came after the answer")
		}
		if took := time.Since(began); took > bodyTimeout/2 {
			t.Errorf("closed after %s, want it at once", took)
		}
	})

	headers := map[string]string{
		"silence":            "",
		"half a line":        "POST /auth/ses",
		"headers and no end": "POST /auth/session HTTP/1.1\r\nHost: x\r\n",
	}
	for name, text := range headers {
		start(name, func(t *testing.T) {
			crowd := make([]*wire, 100)
			began := time.Now()
			for i := range crowd {
				crowd[i] = ts.dial(t)
				crowd[i].send(t, text)
			}
			ts.wantSession(t, ts.post(t, ts.token(t), goodBody)) // which they do not slow
			if took := time.Since(began); took > headerTimeout-time.Second {
				t.Errorf("answered after %s in a crowd of silent callers", took)
			}
			for _, w := range crowd {
				if rest, err := io.ReadAll(w.in); len(rest) > 0 && !bytes.HasPrefix(rest, []byte("HTTP/1.1 400 ")) {
					t.Fatalf("got %q, %v, want 400 or nothing", rest, err)
				}
			}
			if took := time.Since(began); took < headerTimeout-time.Second || took > headerTimeout+3*time.Second {
				t.Errorf("closed after %s, want %s", took, headerTimeout)
			}
		})
	}
	start("dribbled headers", func(t *testing.T) {
		w := ts.dial(t)
		began := time.Now()
		w.send(t, "POST /auth/session HTTP/1.1\r\nX-Slow: ")
		defer w.dribble("x")()
		_, _ = io.ReadAll(w.in)
		took := time.Since(began)
		if took < headerTimeout-time.Second || took > headerTimeout+3*time.Second {
			t.Errorf("closed after %s, want %s", took, headerTimeout)
		}
	})
}

// TestLogLine checks that a request's line is the one that slog would write, whatever its texts have in them.
func TestLogLine(t *testing.T) {
	var got, want bytes.Buffer
	s := &server{lines: &got}
	e := entry{start: time.Now(), took: 1500 * time.Microsecond, requestID: "r-1", status: 500, error: "fault",
		errorID: "E", cause: errors.New("quote \" slash \\ feed \n bad \xff é \u2028 <&>")}
	e.bearer.ClientID, e.unknown = "acme\x00", []string{"a", "", "\"é"}
	s.logRequest(&http.Request{Method: "P\tST", RemoteAddr: "192.0.2.1:5"}, &e)
	line := slog.NewRecord(e.start.Add(e.took), slog.LevelError, "request", 0)
	line.Add("request_id", "r-1", "method", `P\tST`, "route", "", "status", 500, "duration_us", 1500,
		"remote_ip", "192.0.2.1", "client_id", `acme\x00`, "unknown_members", []string{"a", "", `\"\u00e9`},
		"error", "fault", "error_id", "E", "cause", e.cause.Error())
	testkit.Must(t, slog.NewJSONHandler(&want, nil).Handle(t.Context(), line))
	var gotAny, wantAny any
	testkit.Must(t, json.Unmarshal(got.Bytes(), &gotAny))
	testkit.Must(t, json.Unmarshal(want.Bytes(), &wantAny))
	if !reflect.DeepEqual(gotAny, wantAny) || strings.Count(got.String(), "\n") != 1 {
		t.Errorf("the line is %s, want %s", got.String(), want.String())
	}
}
