package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf16"
)

// jsonHeader is what a good request has.
func (ts *testServer) jsonHeader(t testing.TB) http.Header {
	return http.Header{"Authorization": {"Bearer " + ts.token(t)}, "Content-Type": {"application/json"}}
}

// authorization is the header line of a good token.
func (ts *testServer) authorization(t testing.TB) string {
	return "Authorization: Bearer " + ts.token(t)
}

// message is a request's head.
func message(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

func (ts *testServer) goodRequest(t testing.TB) string {
	return message("POST /auth/session HTTP/1.1", "Host: x", ts.authorization(t), goodLength) + goodBody
}

// goodLength is the header line of goodBody.
var goodLength = fmt.Sprintf("Content-Length: %d", len(goodBody))

// wire is a connection to say what no HTTP client would, or to say it slowly.
type wire struct {
	*net.TCPConn
	in *bufio.Reader
}

func (ts *testServer) dial(t testing.TB) *wire {
	t.Helper()
	c, err := net.Dial("tcp", ts.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &wire{c.(*net.TCPConn), bufio.NewReader(c)}
}

func (w *wire) send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatalf("sending %.100q: %v", text, err)
	}
}

func (w *wire) answer(t testing.TB, method string) answer {
	t.Helper()
	response, err := http.ReadResponse(w.in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading an answer: %v", err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("reading an answer's body: %v", err)
	}
	if response.Close { // which ReadResponse makes of the header
		response.Header.Set("Connection", "close")
	}
	a := answer{response.StatusCode, response.Header, body}
	wantDescribed(t, "", nil, a)
	return a
}

// wantClosed checks that nothing more comes, and soon.
func (w *wire) wantClosed(t testing.TB) {
	t.Helper()
	_ = w.SetReadDeadline(time.Now().Add(3 * time.Second))
	rest, err := io.ReadAll(w.in)
	if netErr, ok := err.(net.Error); len(rest) > 0 || ok && netErr.Timeout() {
		t.Fatalf("the connection is open, or had %q: %v", rest, err)
	}
}

// dribble sends piece again and again until stop is called.
func (w *wire) dribble(piece string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	sending.Go(func() {
		for tick := time.Tick(100 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick:
				_, _ = io.WriteString(w, piece) // until it is closed
			}
		}
	})
	return func() { cancel(); sending.Wait() }
}

// exchange sends text on a connection of its own and reads one answer.
func (ts *testServer) exchange(t testing.TB, text string) answer {
	t.Helper()
	w := ts.dial(t)
	w.send(t, text)
	method, _, _ := strings.Cut(text, " ")
	return w.answer(t, method)
}

// logged is the one log line of the request that got a.
func (ts *testServer) logged(t testing.TB, a answer) map[string]any {
	t.Helper()
	id := a.header.Get("X-Request-Id")
	text := fmt.Sprintf(`"request_id":%q`, id)
	waitFor(t, 5*time.Second, "the log line of the request", func() bool { return strings.Contains(ts.log.String(), text) })
	if n := strings.Count(ts.log.String(), text); n != 1 {
		t.Fatalf("%d log lines of one request, want 1", n)
	}
	return ts.log.line(t, "request_id", id)
}

// newSlowTestServer has one connection to a Redis whose replies wait while gate is locked.
func newSlowTestServer(t testing.TB, env map[string]string) (ts *testServer, gate *sync.RWMutex) {
	t.Helper()
	gate = &sync.RWMutex{}
	slow := startProxy(t, testRedisAddr(t), func(client *net.TCPConn, reply []byte) {
		gate.RLock()
		defer gate.RUnlock()
		pass(client, reply)
	})
	all := map[string]string{"REDIS_URL": "redis://" + slow.addr, "STORE_TIMEOUT": "10s"}
	maps.Copy(all, env)
	ts = newTestServer(t, all)
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
	return ts, gate
}

// busy waits until n requests are in work.
func (ts *testServer) busy(t testing.TB, n int64) {
	t.Helper()
	waitFor(t, 5*time.Second, fmt.Sprintf("%d requests in work", n), func() bool { return ts.inFlight.Load() == n })
}

// The reference's own example, with only the base URL changed.
func TestCreateSession(t *testing.T) {
	ts := newTestServer(t, nil)
	const reference = `{ "cancel_uri": "https://acme.com/cancel", "end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", "institution_id": "10", "redirect_uri": "https://acme.com/success" }`
	const uri = `"https://acme.com/cb?a=1&b=%3C\u003c'~"` // which HTML's escapes would change
	tests := []struct {
		name, path, body string
		want             map[string]string // of the members that the body decides
	}{
		{"reference", "/auth/session", reference,
			map[string]string{"end_user_id": `"eu_2yRHN2ag2y4p8kCtm5DOeccZEXB"`, "institution_id": `"10"`, "redirect_uri": `"https://acme.com/success"`, "cancel_uri": `"https://acme.com/cancel"`}},
		{"reference under v1", "/v1/auth/session", reference,
			map[string]string{"end_user_id": `"eu_2yRHN2ag2y4p8kCtm5DOeccZEXB"`, "institution_id": `"10"`, "redirect_uri": `"https://acme.com/success"`, "cancel_uri": `"https://acme.com/cancel"`}},
		{"required alone", "/auth/session", goodBody, map[string]string{"end_user_id": `"eu_1"`}},
		{"optional null", "/auth/session", `{"end_user_id":"eu_1","institution_id":null,"redirect_uri":null,"cancel_uri":null}`, map[string]string{"end_user_id": `"eu_1"`}},
		{"optional empty", "/auth/session", `{"end_user_id":"eu_1","institution_id":"","redirect_uri":"","cancel_uri":""}`, map[string]string{"end_user_id": `"eu_1"`}},
		{"institution_id alone", "/auth/session", `{"end_user_id":"eu_1","institution_id":"a&<b>"}`, map[string]string{"end_user_id": `"eu_1"`, "institution_id": `"a&<b>"`}},
		{"redirect_uri alone", "/auth/session", `{"end_user_id":"eu_1","redirect_uri":` + strings.ReplaceAll(uri, `\u003c`, "") + `}`, map[string]string{"end_user_id": `"eu_1"`, "redirect_uri": strings.ReplaceAll(uri, `\u003c`, "")}},
		{"cancel_uri alone, escaped", "/auth/session", `{"end_user_id":"eu_1","cancel_uri":"HTTPS:\/\/ACME.com\u002f"}`, map[string]string{"end_user_id": `"eu_1"`, "cancel_uri": `"HTTPS://ACME.com/"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := time.Now().Unix()
			a := ts.do(t, "POST", test.path, ts.jsonHeader(t), strings.NewReader(test.body))
			after := time.Now().Unix()
			record := ts.wantSession(t, a)
			var s sessionAnswer
			a.decode(t, &s)
			if record.CreatedAt < before || record.CreatedAt > after || s.ExpiresAt != record.CreatedAt+30*60 {
				t.Errorf("created_at %d, expires_at %d, want %d and 30 minutes later", record.CreatedAt, s.ExpiresAt, before)
			}
			var members map[string]any
			if err := json.Unmarshal(a.body, &members); err != nil || len(members) != 4 {
				t.Errorf("answer %s, want four members", a.body)
			}
			if want := "https://consent.example/start?v=1&sess_id=" + s.SessionID; s.AuthURL != want {
				t.Errorf("auth_url = %q, want %q", s.AuthURL, want)
			}

			value, err := ts.redis.Get(t.Context(), sessionKey(ts.keyPrefix, s.SessionID)).Bytes()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]json.RawMessage{}
			if err := json.Unmarshal(value, &got); err != nil {
				t.Fatalf("record %s: %v", value, err)
			}
			want := map[string]string{
				"v": "1", "id": fmt.Sprintf("%q", s.ID), "client_id": `"acme"`,
				"created_at": fmt.Sprint(record.CreatedAt), "expires_at": fmt.Sprint(s.ExpiresAt),
			}
			maps.Copy(want, test.want)
			for name := range want {
				if string(got[name]) != want[name] {
					t.Errorf("record's %s = %s, want %s", name, got[name], want[name])
				}
			}
			if len(got) != len(want) {
				t.Errorf("record %s, want only %v", value, slices.Sorted(maps.Keys(want)))
			}
			if bytes.Contains(value, []byte(s.SessionID)) {
				t.Errorf("record %s has the session_id in clear", value)
			}
		})
	}
	if n := len(ts.sessionKeys(t)); n != len(tests) {
		t.Errorf("%d keys for %d sessions", n, len(tests))
	}
}

// encoded is text in UTF-16 or UTF-32, of so many bytes a unit.
func encoded(text string, unit int, bigEndian bool) string {
	var out []byte
	for _, c := range utf16.Encode([]rune(text)) {
		at := make([]byte, unit)
		at[0] = byte(c)
		if bigEndian {
			slices.Reverse(at)
		}
		out = append(out, at...)
	}
	return string(out)
}

func TestBodies(t *testing.T) {
	ts := newTestServer(t, nil)
	id := func(value string) string { return `{"end_user_id":` + value + `}` }
	deep := strings.Repeat("[", 32000)
	tests := []struct {
		name, body string
		names      string // the message begins with it; "" is 200
	}{
		{"all fields", `{"end_user_id":"eu_1","institution_id":"10","redirect_uri":"https://a.example/","cancel_uri":"a.b:/"}`, ""},
		{"nothing", "", "the body "},
		{"white space", " \r\n\t ", "the body "},
		{"null", `null`, "the body "},
		{"array", `[` + goodBody + `]`, "the body "},
		{"string", `"eu_1"`, "the body "},
		{"true", `true`, "the body "},
		{"empty object", `{}`, "end_user_id "},
		{"end_user_id null", id(`null`), "end_user_id "},
		{"end_user_id empty", id(`""`), "end_user_id "},
		{"end_user_id a space", id(`" "`), "end_user_id "},
		{"end_user_id a tab", id(`"\t"`), "end_user_id "},
		{"end_user_id a no-break space", id(`"\u00a0"`), "end_user_id "},
		{"end_user_id a number", id(`1`), "end_user_id "},
		{"end_user_id a boolean", id(`true`), "end_user_id "},
		{"end_user_id an object", id(`{}`), "end_user_id "},
		{"end_user_id an array", id(`["u"]`), "end_user_id "},
		{"end_user_id of 128 bytes", id(`"` + strings.Repeat("x", 128) + `"`), ""},
		{"end_user_id of 129 bytes", id(`"` + strings.Repeat("x", 129) + `"`), "end_user_id "},
		{"end_user_id of 10,000 bytes", id(`"` + strings.Repeat("x", 10_000) + `"`), "end_user_id "},
		{"end_user_id of 128 escapes", id(`"` + strings.Repeat(`\u0078`, 128) + `"`), ""},
		{"end_user_id with NUL", id(`"eu\u0000"`), "end_user_id "},
		{"end_user_id with a line feed", id(`"eu\n"`), "end_user_id "},
		{"end_user_id with DEL", id(`"eu\u007f"`), "end_user_id "},
		{"end_user_id with an override", id(`"eu\u202e"`), "end_user_id "},
		{"end_user_id with a space", id(`"e u"`), "end_user_id "},
		{"end_user_id with an emoji", id(`"eu😀"`), "end_user_id "},
		{"end_user_id in capitals", `{"END_USER_ID":"eu_1"}`, "end_user_id "},
		{"end_user_id capitalised", `{"End_User_Id":"eu_1"}`, "end_user_id "},
		{"end_user_id with a long s", `{"end_u\u017fer_id":"eu_1"}`, "end_user_id "},
		{"end_user_id with its name escaped", `{"\u0065nd_user_id":"eu_1"}`, ""},
		{"both spellings, exact one bad", `{"end_user_id":"","END_USER_ID":"eu_1"}`, "end_user_id "},
		{"end_user_id twice, the same", `{"end_user_id":"eu_1","end_user_id":"eu_1"}`, "the body "},
		{"end_user_id twice, different", `{"end_user_id":"eu_1","end_user_id":"eu_2"}`, "the body "},
		{"end_user_id twice, once escaped", `{"end_user_id":"eu_1","end_user\u005fid":"eu_1"}`, "the body "},
		{"unknown member twice", `{"end_user_id":"eu_1","x":1,"x":1}`, "the body "},
		{"names twice inside an unknown member", `{"end_user_id":"eu_1","x":{"y":1,"y":2,"end_user_id":3}}`, ""},
		{"bad syntax inside an unknown member", `{"end_user_id":"eu_1","x":{"y":01}}`, "the body "},
		{"surrogate inside an unknown member", `{"end_user_id":"eu_1","x":["\ud800"]}`, "the body "},
		{"unknown member 32,000 deep", `{"end_user_id":"eu_1","x":` + deep + strings.ReplaceAll(deep, "[", "]") + `}`, ""},
		{"unknown member open 64,000 deep", `{"x":` + strings.Repeat("[", 64000), "the body "},
		{"letter after it", goodBody + "x", "the body "},
		{"object after it", goodBody + goodBody, "the body "},
		{"object on a new line after it", goodBody + "\n" + goodBody, "the body "},
		{"NUL after it", goodBody + "\x00", "the body "},
		{"bracket after it", goodBody + "]", "the body "},
		{"line separator after it", goodBody + "\u2028", "the body "},
		{"white space around it", "\r\n\t " + goodBody + " \n\n\t\r", ""},
		{"byte order mark", "\ufeff" + goodBody, "the body "},
		{"UTF-16 LE", encoded(goodBody, 2, false), "the body "},
		{"UTF-16 BE", encoded(goodBody, 2, true), "the body "},
		{"UTF-16 with its mark", "\xff\xfe" + encoded(goodBody, 2, false), "the body "},
		{"UTF-32 LE", encoded(goodBody, 4, false), "the body "},
		{"UTF-32 BE", encoded(goodBody, 4, true), "the body "},
		{"stray byte", id("\"eu\xff\""), "the body "},
		{"overlong form", id("\"eu\xc0\xaf\""), "the body "},
		{"surrogate in UTF-8", id("\"eu\xed\xa0\x80\""), "the body "},
		{"stray byte in an unknown member", "{\"end_user_id\":\"eu_1\",\"x\":\"\x80\"}", "the body "},
		{"comment", `{"end_user_id":"eu_1"/* */}`, "the body "},
		{"trailing comma", `{"end_user_id":"eu_1",}`, "the body "},
		{"single quotes", `{'end_user_id':'eu_1'}`, "the body "},
		{"name without quotes", `{end_user_id:"eu_1"}`, "the body "},
		{"NaN", `{"end_user_id":"eu_1","x":NaN}`, "the body "},
		{"+1", `{"end_user_id":"eu_1","x":+1}`, "the body "},
		{"01", `{"end_user_id":"eu_1","x":01}`, "the body "},
		{"hexadecimal", `{"end_user_id":"eu_1","x":0x1}`, "the body "},
		{"form", `end_user_id=eu_1`, "the body "},
		{"institution_id a number", `{"end_user_id":"eu_1","institution_id":10}`, "institution_id "},
		{"institution_id of 64 bytes", `{"end_user_id":"eu_1","institution_id":"` + strings.Repeat("x", 64) + `"}`, ""},
		{"institution_id of 65 bytes", `{"end_user_id":"eu_1","institution_id":"` + strings.Repeat("x", 65) + `"}`, "institution_id "},
		{"institution_id a space", `{"end_user_id":"eu_1","institution_id":" "}`, "institution_id "},
		{"redirect_uri false", `{"end_user_id":"eu_1","redirect_uri":false}`, "redirect_uri "},
		{"redirect_uri a space", `{"end_user_id":"eu_1","redirect_uri":" "}`, "redirect_uri "},
		{"cancel_uri an object", `{"end_user_id":"eu_1","cancel_uri":{"a":1}}`, "cancel_uri "},
		{"cancel_uri of 2,048 bytes", `{"end_user_id":"eu_1","cancel_uri":"https://a.example/` + strings.Repeat("x", 2048-18) + `"}`, ""},
		{"cancel_uri of 2,049 bytes", `{"end_user_id":"eu_1","cancel_uri":"https://a.example/` + strings.Repeat("x", 2049-18) + `"}`, "cancel_uri "},
	}
	sessions := 0
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := ts.post(t, ts.token(t), test.body)
			if test.names == "" {
				sessions++
				ts.wantSession(t, a)
				return
			}
			name := "bad_request"
			if test.names == "institution_id " {
				name = "invalid_institution_id"
			}
			e := wantError(t, a, 400, name)
			if !strings.HasPrefix(e.Message, test.names) || strings.Contains(e.Message, ";") {
				t.Errorf("message = %q, want it to name only %s", e.Message, test.names)
			}
		})
	}
	if n := len(ts.sessionKeys(t)); n != sessions {
		t.Errorf("%d keys for %d sessions", n, sessions)
	}
}

// The exact one counts, whatever stands beside it.
func TestOtherSpelling(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, body := range []string{`{"END_USER_ID":"x","end_user_id":"eu_1"}`, `{"end_user_id":"eu_1","END_USER_ID":"x"}`} {
		if record := ts.wantSession(t, ts.post(t, ts.token(t), body)); record.EndUserID != "eu_1" {
			t.Errorf("end_user_id = %q for %s, want eu_1", record.EndUserID, body)
		}
	}
}

func TestBrokenFields(t *testing.T) {
	ts := newTestServer(t, nil)
	tests := []struct {
		body, name string
		members    []string // in the contract's order
	}{
		{`{"cancel_uri":1,"redirect_uri":"http://a.example/","institution_id":"a b","end_user_id":""}`, "bad_request", []string{"end_user_id", "institution_id", "redirect_uri", "cancel_uri"}},
		{`{"cancel_uri":"x","institution_id":[]}`, "bad_request", []string{"end_user_id", "institution_id", "cancel_uri"}},
		{`{"end_user_id":"eu_1","cancel_uri":"x","redirect_uri":"x","institution_id":"\n"}`, "invalid_institution_id", []string{"institution_id", "redirect_uri", "cancel_uri"}},
		{`{"end_user_id":"eu_1","institution_id":7}`, "invalid_institution_id", []string{"institution_id"}},
		{`{"end_user_id":"eu_1","cancel_uri":"x","redirect_uri":"x"}`, "bad_request", []string{"redirect_uri", "cancel_uri"}},
	}
	for _, test := range tests {
		e := wantError(t, ts.post(t, ts.token(t), test.body), 400, test.name)
		messages := strings.Split(e.Message, "; ")
		if !slices.EqualFunc(messages, test.members, func(message, member string) bool { return strings.HasPrefix(message, member+" ") }) {
			t.Errorf("message to %s = %q, want one of each of %v", test.body, e.Message, test.members)
		}
	}
	ts.wantNoKeys(t)
}

func TestUnknownMembers(t *testing.T) {
	ts := newTestServer(t, nil)
	body := `{"permissions":["a",{"b":null}],"__proto__":{"end_user_id":"x"},"expires_at":1,"session_id":"stolen","id":"mine","scope":"x","auth_url":"https://evil.example/","v":2,"client_id":"other",` +
		`"end_user_id":"eu_1","` + strings.Repeat("x", 63) + `é":1,"created_at":1,"more":1}`
	before := time.Now().Unix()
	a := ts.post(t, ts.token(t), body)
	record := ts.wantSession(t, a)
	want := session{Version: 1, ID: record.ID, ClientID: "acme", EndUserID: "eu_1", CreatedAt: record.CreatedAt, ExpiresAt: record.CreatedAt + 30*60}
	if record != want || record.ID == "mine" || record.CreatedAt < before {
		t.Errorf("record = %+v, want %+v", record, want)
	}
	names := `["permissions","__proto__","expires_at","session_id","id","scope","auth_url","v","client_id","` + strings.Repeat("x", 63) + `"]`
	if got := encodeJSON(ts.logged(t, a)["unknown_members"]); string(got) != names {
		t.Errorf("unknown_members = %s, want %s", got, names)
	}

	long := strings.Repeat("y", 64)
	for body, want := range map[string]string{
		goodBody: "null",
		`{"end_user_id":"eu_1","` + long + `z":1,"` + long + `":1}`: `["` + long + `","` + long + `"]`,
		`{"end_user_id":"","END_USER_ID":1}`:                        `["END_USER_ID"]`, // a refusal's too
	} {
		if got := encodeJSON(ts.logged(t, ts.post(t, ts.token(t), body))["unknown_members"]); string(got) != want {
			t.Errorf("unknown_members of %s = %s, want %s", body, got, want)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	ts := newTestServer(t, nil)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(append([]byte(goodBody), bytes.Repeat([]byte(" "), 16<<20)...)) // a bomb
	_ = z.Close()
	tests := []struct {
		types, encodings []string
		body             string
		want             int
	}{
		{[]string{"application/json"}, nil, goodBody, 200},
		{[]string{"application/json; charset=utf-8"}, nil, goodBody, 200},
		{[]string{"application/json; charset=UTF-8"}, nil, goodBody, 200},
		{[]string{`application/json;charset="utf-8"`}, nil, goodBody, 200},
		{[]string{"Application/JSON ; Charset=Utf-8"}, nil, goodBody, 200},
		{[]string{"application/json; profile=x; version=2"}, nil, goodBody, 200},
		{nil, nil, goodBody, 200},
		{[]string{"application/json"}, []string{"identity"}, goodBody, 200},
		{[]string{"application/json"}, []string{"Identity"}, goodBody, 200},
		{[]string{"application/x-www-form-urlencoded"}, nil, goodBody, 415},
		{[]string{"application/vnd.api+json"}, nil, goodBody, 415},
		{[]string{"application/*"}, nil, goodBody, 415},
		{[]string{"*/*"}, nil, goodBody, 415},
		{[]string{"text/json"}, nil, goodBody, 415},
		{[]string{"text/plain"}, nil, goodBody, 415},
		{[]string{"application/jsonp"}, nil, goodBody, 415},
		{[]string{"application/json-seq"}, nil, goodBody, 415},
		{[]string{"application"}, nil, goodBody, 415},
		{[]string{"text/plain; application/json"}, nil, goodBody, 415},
		{[]string{"application/json, text/plain"}, nil, goodBody, 415},
		{[]string{"text/plain", "application/json"}, nil, goodBody, 415},
		{[]string{"application/json", "text/plain"}, nil, goodBody, 415},
		{[]string{"application/json"}, []string{"gzip"}, zipped.String(), 415},
		{[]string{"application/json"}, []string{"gzip"}, goodBody, 415},
		{[]string{"application/json"}, []string{"deflate"}, goodBody, 415},
		{[]string{"applİcation/json"}, nil, goodBody, 415},
		{[]string{"application/jſon"}, nil, goodBody, 415},
		{[]string{"application/json"}, []string{"İdentity"}, goodBody, 415},
		{[]string{"application/json"}, []string{"br"}, goodBody, 415},
		{[]string{"application/json"}, []string{"identity, gzip"}, goodBody, 415},
		{[]string{"application/json"}, []string{"identity", "gzip"}, goodBody, 415},
		{nil, []string{"gzip"}, zipped.String(), 415},
		{[]string{"application/json"}, nil, zipped.String(), 400}, // not inflated, so it is no JSON
	}
	for _, test := range tests {
		h := http.Header{"Authorization": {"Bearer " + ts.token(t)}}
		if test.types != nil {
			h["Content-Type"] = test.types
		}
		if test.encodings != nil {
			h["Content-Encoding"] = test.encodings
		}
		a := ts.do(t, "POST", "/auth/session", h, strings.NewReader(test.body))
		if a.status != test.want {
			t.Errorf("POST with Content-Type %q, Content-Encoding %q = %d, want %d", test.types, test.encodings, a.status, test.want)
			continue
		}
		switch test.want {
		case 200:
			ts.wantSession(t, a)
		case 415:
			e := wantError(t, a, 415, "unsupported_media_type")
			if test.encodings == nil && !strings.Contains(e.Message, "Content-Type: application/json") {
				t.Errorf("message = %q, want it to say what to send", e.Message)
			}
		}
	}
}

// The limit is on the body as sent. Beyond it the connection is of no more use.
func TestBodySizes(t *testing.T) {
	ts := newTestServer(t, nil)
	auth := ts.authorization(t)
	for _, test := range []struct {
		size, want int
	}{{64 << 10, 200}, {64<<10 + 1, 413}, {1 << 20, 413}, {100 << 20, 413}} {
		for _, framing := range []string{fmt.Sprintf("Content-Length: %d", test.size), "Transfer-Encoding: chunked"} {
			t.Run(fmt.Sprintf("%d, %s", test.size, framing), func(t *testing.T) {
				w := ts.dial(t)
				w.send(t, message("POST /auth/session HTTP/1.1", "Host: x", auth, framing))
				sent := make(chan struct{})
				go func() { // it is refused before all is sent
					defer close(sent)
					chunked := strings.HasPrefix(framing, "Transfer")
					part, left := goodBody, test.size
					for err := error(nil); left > 0 && err == nil; {
						part = part[:min(len(part), left)]
						left -= len(part)
						if chunked {
							_, err = fmt.Fprintf(w, "%x\r\n%s\r\n", len(part), part)
						} else {
							_, err = io.WriteString(w, part)
						}
						part = strings.Repeat(" ", 32<<10)
					}
					if chunked {
						_, _ = io.WriteString(w, "0\r\n\r\n")
					}
				}()
				a := w.answer(t, "POST")
				if test.want == 200 {
					ts.wantSession(t, a)
					return
				}
				wantError(t, a, 413, "request_too_large")
				if got := a.header.Get("Connection"); got != "close" {
					t.Errorf("Connection = %q, want close", got)
				}
				w.wantClosed(t)
				_ = w.Close()
				<-sent
			})
		}
	}
	t.Run("1 GiB announced, nothing sent", func(t *testing.T) {
		w := ts.dial(t)
		w.send(t, message("POST /auth/session HTTP/1.1", "Host: x", auth, "Content-Length: 1073741824"))
		wantError(t, w.answer(t, "POST"), 413, "request_too_large")
		w.wantClosed(t)
	})
	t.Run("shorter than announced", func(t *testing.T) {
		w := ts.dial(t)
		w.send(t, message("POST /auth/session HTTP/1.1", "Host: x", auth, "Content-Length: 100")+goodBody)
		_ = w.CloseWrite()
		wantError(t, w.answer(t, "POST"), 400, "bad_request")
		w.wantClosed(t)
	})
	if n := len(ts.sessionKeys(t)); n != 2 {
		t.Errorf("%d keys for 2 sessions", n)
	}
}

// Each row of the contract's error table that needs no trouble with Redis, time or our own code.
func TestErrors(t *testing.T) {
	ts := newTestServer(t, nil)
	good := ts.token(t)
	noScope := ecKey().sign(t, with(map[string]any{"scope": "api:user.read"}))
	const (
		noToken  = `Bearer`
		badToken = `Bearer error="invalid_token"`
	)
	tests := []struct {
		name           string
		method, path   string
		authorizations []string
		contentType    string
		body           string
		status         int
		class          string
		header, value  string // one that the answer must have
	}{
		{"body", "POST", "/auth/session", []string{"Bearer " + good}, "application/json", "[]", 400, "bad_request", "", ""},
		{"field", "POST", "/auth/session", []string{"Bearer " + good}, "application/json", "{}", 400, "bad_request", "", ""},
		{"two good Authorization headers", "POST", "/auth/session", []string{"Bearer " + good, "Bearer " + good}, "application/json", goodBody, 400, "bad_request", "Www-Authenticate", ""},
		{"good and bad Authorization headers", "POST", "/auth/session", []string{"Bearer " + good, "Bearer x"}, "application/json", goodBody, 400, "bad_request", "", ""},
		{"bad and good Authorization headers", "POST", "/auth/session", []string{"Basic x", "Bearer " + good}, "application/json", goodBody, 400, "bad_request", "", ""},
		{"institution_id", "POST", "/auth/session", []string{"Bearer " + good}, "application/json", `{"end_user_id":"eu_1","institution_id":" "}`, 400, "invalid_institution_id", "", ""},
		{"no token", "POST", "/auth/session", nil, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", noToken},
		{"empty Authorization", "POST", "/auth/session", []string{""}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", noToken},
		{"scheme alone", "POST", "/auth/session", []string{"Bearer"}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", noToken},
		{"another scheme", "POST", "/auth/session", []string{"Basic dTpw"}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", noToken},
		{"token without a scheme", "POST", "/auth/session", []string{good}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", noToken},
		{"token in the query", "POST", "/auth/session?access_token=" + good, nil, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", noToken},
		{"token in a form", "POST", "/auth/session", nil, "application/x-www-form-urlencoded", "access_token=" + good, 401, "unauthorized", "Www-Authenticate", noToken},
		{"bad token", "POST", "/auth/session", []string{"Bearer a.b.c"}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", badToken},
		{"two spaces", "POST", "/auth/session", []string{"Bearer  " + good}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", badToken},
		{"tab", "POST", "/auth/session", []string{"Bearer\t" + good}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", badToken},
		{"token and more", "POST", "/auth/session", []string{"Bearer " + good + ", Bearer " + good}, "application/json", goodBody, 401, "unauthorized", "Www-Authenticate", badToken},
		{"no scope", "POST", "/auth/session", []string{"Bearer " + noScope}, "application/json", goodBody, 403, "forbidden", "Www-Authenticate", `Bearer error="insufficient_scope", scope="api:user.write"`},
		{"path", "POST", "/auth", []string{"Bearer " + good}, "application/json", goodBody, 404, "not_found", "Allow", ""},
		{"method", "PUT", "/auth/session", []string{"Bearer " + good}, "application/json", goodBody, 405, "method_not_allowed", "Allow", "POST"},
		{"method of health", "POST", "/livez", nil, "application/json", goodBody, 405, "method_not_allowed", "Allow", "GET, HEAD"},
		{"body too large", "POST", "/auth/session", []string{"Bearer " + good}, "application/json", goodBody + strings.Repeat(" ", maxBody), 413, "request_too_large", "", ""},
		{"form", "POST", "/auth/session", []string{"Bearer " + good}, "application/x-www-form-urlencoded", "end_user_id=eu_1", 415, "unsupported_media_type", "", ""},

		// The first check that fails answers.
		{"path before method", "GET", "/auth", []string{"Bearer x"}, "text/plain", "", 404, "not_found", "", ""},
		{"method before token", "GET", "/auth/session", []string{"Bearer x"}, "text/plain", "[]", 405, "method_not_allowed", "Www-Authenticate", ""},
		{"override of the method", "GET", "/auth/session?_method=POST", []string{"Bearer " + good}, "application/json", goodBody, 405, "method_not_allowed", "Allow", "POST"},
		{"token before media type", "POST", "/auth/session", []string{"Bearer x"}, "text/plain", "[]", 401, "unauthorized", "", ""},
		{"token before body", "POST", "/auth/session", []string{"Bearer x"}, "application/json", strings.Repeat("[", 1<<20), 401, "unauthorized", "", ""},
		{"scope before media type", "POST", "/auth/session", []string{"Bearer " + noScope}, "text/plain", "[]", 403, "forbidden", "", ""},
		{"media type before size", "POST", "/auth/session", []string{"Bearer " + good}, "text/plain", strings.Repeat(" ", 1<<20), 415, "unsupported_media_type", "", ""},
		{"size before syntax", "POST", "/auth/session", []string{"Bearer " + good}, "application/json", strings.Repeat("]", 1<<20), 413, "request_too_large", "", ""},
	}
	messages := map[string]bool{}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{"Content-Type": {test.contentType}, "X-Http-Method-Override": {"POST"}, "Cookie": {"access_token=" + good}}
			if test.authorizations != nil {
				h["Authorization"] = test.authorizations
			}
			a := ts.do(t, test.method, test.path, h, strings.NewReader(test.body))
			e := wantError(t, a, test.status, test.class)
			if got := a.header.Get(test.header); got != test.value {
				t.Errorf("%s = %q, want %q", test.header, got, test.value)
			}
			if line := ts.logged(t, a); line["error_id"] != e.ID || line["error"] != test.class || line["status"] != float64(test.status) || line["cause"] == "" || line["level"] != "INFO" {
				t.Errorf("log line %v does not fit answer %s", line, a.body)
			}
			if test.status == 401 {
				messages[e.Message] = true
			}
		})
	}
	if len(messages) != 1 {
		t.Errorf("401 says %d things, want 1: %v", len(messages), messages)
	}
	ts.wantNoKeys(t)
}

func TestUnavailable(t *testing.T) {
	check := func(t *testing.T, ts *testServer, body string, status int, name string) {
		t.Helper()
		start := time.Now()
		a := ts.post(t, ts.token(t), body)
		e := wantError(t, a, status, name)
		if took := time.Since(start); took > readTimeout/2 {
			t.Errorf("answered after %s", took)
		}
		if line := ts.logged(t, a); line["error_id"] != e.ID || status >= 500 && line["level"] != "ERROR" {
			t.Errorf("log line %v does not fit answer %s", line, a.body)
		}
	}
	t.Run("nothing listens where Redis should", func(t *testing.T) {
		ts := newTestServer(t, map[string]string{"REDIS_URL": "redis://127.0.0.1:" + freePort()})
		check(t, ts, goodBody, 503, "unavailable")
		check(t, ts, `{}`, 400, "bad_request") // fields before store
	})
	t.Run("Redis does not answer", func(t *testing.T) {
		ts, gate := newSlowTestServer(t, map[string]string{"STORE_TIMEOUT": "300ms"})
		gate.Lock()
		defer gate.Unlock()
		check(t, ts, goodBody, 504, "timeout")
	})
	t.Run("no keys", func(t *testing.T) {
		ts := newTestServer(t, map[string]string{"JWKS_URL": "file:///nonexistent/jwks.json"})
		check(t, ts, goodBody, 503, "unavailable")
		// What is no bearer token at all needs no key to be told so.
		if a := ts.post(t, "", goodBody); a.status != 401 && a.status != 503 {
			t.Errorf("POST without a token = %d, want 401 or 503", a.status)
		}
		ts.wantNoKeys(t)
	})
}

func TestRoutes(t *testing.T) {
	ts := newTestServer(t, nil)
	auth, length := ts.authorization(t), goodLength
	tests := []struct {
		line  string // method and target
		want  int
		allow string
	}{
		{"POST /auth/session", 200, ""},
		{"POST /v1/auth/session", 200, ""},
		{"POST /auth/session?x=1&end_user_id=other", 200, ""},
		{"POST /auth/session?", 200, ""},
		{"POST http://foreign.example/auth/session", 200, ""},

		{"GET /auth/session", 405, "POST"},
		{"PUT /auth/session", 405, "POST"},
		{"DELETE /auth/session", 405, "POST"},
		{"PATCH /auth/session", 405, "POST"},
		{"HEAD /auth/session", 405, "POST"},
		{"TRACE /auth/session", 405, "POST"},
		{"OPTIONS /auth/session", 405, "POST"},
		{"CONNECT /auth/session", 405, "POST"},
		{"FOO /auth/session", 405, "POST"},
		{"post /auth/session", 405, "POST"},
		{"Post /v1/auth/session", 405, "POST"},
		{"GET /v1/auth/session", 405, "POST"},
		{"POST /livez", 405, "GET, HEAD"},
		{"OPTIONS /readyz", 405, "GET, HEAD"},
		{"FOO /readyz", 405, "GET, HEAD"},
		{"get /livez", 405, "GET, HEAD"},

		{"CONNECT foreign.example:443", 404, ""},
		{"OPTIONS *", 404, ""},
		{"POST /", 404, ""},
		{"HEAD /", 404, ""},
		{"FOO /", 404, ""},
		{"POST /auth/session/", 404, ""},
		{"POST //auth/session", 404, ""},
		{"POST /auth//session", 404, ""},
		{"POST /x/../auth/session", 404, ""},
		{"POST /./auth/session", 404, ""},
		{"POST /AUTH/session", 404, ""},
		{"POST /auth/session;x=1", 404, ""},
		{"POST /%61uth/session", 404, ""},
		{"POST /auth%2Fsession", 404, ""},
		{"POST /auth/session%00", 404, ""},
		{"POST /auth/session%20", 404, ""},
		{"POST /auth/session%3Fx", 404, ""},
		{"POST /v1/v1/auth/session", 404, ""},
		{"POST /v2/auth/session", 404, ""},
		{"POST /v1/livez", 404, ""},
		{"POST /metrics", 404, ""},
		{"GET /livez/", 404, ""},
		{"GET /debug/pprof/", 404, ""},
		{"GET /%6Civez", 404, ""},
	}
	sessions := 0
	for _, test := range tests {
		t.Run(test.line, func(t *testing.T) {
			a := ts.exchange(t, message(test.line+" HTTP/1.1", "Host: foreign.example", "X-Forwarded-Host: foreign.example", auth, length)+goodBody)
			switch {
			case test.want == 200:
				sessions++
				ts.wantSession(t, a)
			case strings.HasPrefix(test.line, "HEAD "):
				wantHeaders(t, a, "application/vnd.goa.error")
				if a.status != test.want || len(a.body) > 0 {
					t.Errorf("%s = %d with %d bytes, want %d and none", test.line, a.status, len(a.body), test.want)
				}
			default:
				wantError(t, a, test.want, map[int]string{404: "not_found", 405: "method_not_allowed"}[test.want])
			}
			if got := a.header.Get("Allow"); got != test.allow {
				t.Errorf("Allow = %q, want %q", got, test.allow)
			}
			if a.header.Get("Location") != "" {
				t.Errorf("%s redirects", test.line)
			}
		})
	}
	if n := len(ts.sessionKeys(t)); n != sessions {
		t.Errorf("%d keys for %d sessions", n, sessions)
	}
}

func TestHealth(t *testing.T) {
	ts := newTestServer(t, nil)
	check := func(path string, status int, missing ...string) {
		t.Helper()
		for _, method := range []string{"GET", "HEAD"} {
			a := ts.do(t, method, path, nil, nil)
			switch {
			case a.status != status:
				t.Errorf("%s %s = %d %s, want %d", method, path, a.status, a.body, status)
			case status == 200:
				wantHeaders(t, a, "text/plain; charset=utf-8")
			case method == "HEAD":
				wantHeaders(t, a, "application/vnd.goa.error")
			default:
				e := wantError(t, a, status, "unavailable")
				for _, what := range missing {
					if !strings.Contains(e.Message, what) {
						t.Errorf("%s says %q, want it to name %q", path, e.Message, what)
					}
				}
			}
			if method == "HEAD" && len(a.body) > 0 {
				t.Errorf("HEAD %s has a body %q", path, a.body)
			}
		}
	}
	check("/livez", 200)
	check("/readyz", 200)
	ts.wantNoKeys(t)
	ts.draining.Store(true)
	check("/livez", 200)
	check("/readyz", 503, "shutting down")
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody)) // not ready and still serving

	ts = newTestServer(t, map[string]string{"REDIS_URL": "redis://127.0.0.1:" + freePort(), "JWKS_URL": "file:///nonexistent/jwks.json"})
	check("/livez", 200)
	check("/readyz", 503, "redis", "key set")
}

// What net/http refuses by itself keeps its own answer, and never reaches a handler.
func TestServerAnswers(t *testing.T) {
	ts := newTestServer(t, nil)
	auth, length := ts.authorization(t), goodLength
	const post, host = "POST /auth/session HTTP/1.1", "Host: x"
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(goodBody), goodBody)
	small := slices.Repeat([]string{"a: bcd"}, 2000) // 16 KB on the wire
	tests := []struct {
		name, text string
		want       int // 200 and 400 "ours" are handlers' answers
		ours       bool
	}{
		{"no Host", message(post, auth, length) + goodBody, 400, false},
		{"two Hosts", message(post, host, "Host: y", auth, length) + goodBody, 400, false},
		{"bad request line", message("POST /auth/session", host), 400, false},
		{"no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, false},
		{"space in the target", message("POST /auth/ session HTTP/1.1", host), 400, false},
		{"bad escape in the target", message("POST /auth/session%zz HTTP/1.1", host, auth, length) + goodBody, 400, false},
		{"HTTP/3.0", message("POST /auth/session HTTP/3.0", host, auth, length) + goodBody, 505, false},
		{"another expectation", message(post, host, auth, length, "Expect: 200-ok"), 417, false},
		{"Upgrade: h2c", message(post, host, auth, length, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA") + goodBody, 200, true},

		{"header of 30 KB", message(post, host, auth, length, "X-Long: "+strings.Repeat("x", 30<<10)) + goodBody, 431, false},
		{"target of 30 KB", message("POST /auth/session?"+strings.Repeat("x", 30<<10)+" HTTP/1.1", host, auth, length) + goodBody, 431, false},
		{"2,000 small headers", message(append([]string{post, host, auth, length}, small...)...) + goodBody, 200, true},

		{"Content-Length twice, equal", message(post, host, auth, length, length) + goodBody, 200, true},
		{"Content-Length twice, different", message(post, host, auth, length, "Content-Length: 5") + goodBody, 400, false},
		{"Content-Length list", message(post, host, auth, length+", 21") + goodBody, 400, false},
		{"Content-Length with a sign", message(post, host, auth, fmt.Sprintf("Content-Length: +%d", len(goodBody))) + goodBody, 400, false},
		{"Content-Length below zero", message(post, host, auth, "Content-Length: -1") + goodBody, 400, false},
		{"Content-Length 1e20", message(post, host, auth, "Content-Length: 1e20") + goodBody, 400, false},
		{"Content-Length beyond 64 bits", message(post, host, auth, "Content-Length: 100000000000000000000") + goodBody, 400, false},

		{"chunked", message(post, host, auth, "Transfer-Encoding: chunked") + chunks, 200, true},
		{"xchunked", message(post, host, auth, "Transfer-Encoding: xchunked") + chunks, 501, false},
		{"gzip, chunked", message(post, host, auth, "Transfer-Encoding: gzip, chunked") + chunks, 501, false},
		{"two Transfer-Encoding lines", message(post, host, auth, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunks, 501, false},
		{"space before the colon", message(post, host, auth, "Transfer-Encoding : chunked") + chunks, 400, false},
		{"folded header", message(post, host, auth, length, "X-A: b", "\tc") + goodBody, 200, true},
		{"chunked in HTTP/1.0", message("POST /auth/session HTTP/1.0", host, auth, "Transfer-Encoding: chunked") + chunks, 400, true},
		{"HTTP/1.0", message("POST /auth/session HTTP/1.0", host, auth, length) + goodBody, 200, true},
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
				wantError(t, a, test.want, "bad_request")
			case a.status != test.want || a.header.Get("Goa-Error") != "" || a.header.Get("X-Request-Id") != "":
				t.Errorf("answer = %d %v %s, want net/http's own %d", a.status, a.header, a.body, test.want)
			}
		})
	}
	if n := len(ts.sessionKeys(t)); n != sessions {
		t.Errorf("%d keys for %d sessions", n, sessions)
	}
}

// A refusal waits for no body. A body that is there is passed over; one that is not, or is
// broken, ends the connection, since there is no telling where the next request begins.
func TestRefusalBeforeBody(t *testing.T) {
	ts := newTestServer(t, nil)
	const post, host, bad = "POST /auth/session HTTP/1.1", "Host: x", "Authorization: Bearer x.y.z"
	good, chunked := ts.authorization(t), "Transfer-Encoding: chunked"
	length := goodLength
	next := message("GET /livez HTTP/1.1", host)
	tests := []struct {
		name, head string
		before     string // sent with the head
		after      string // sent after the answer
		want       int
		reuse      bool // the connection serves another request
	}{
		{"no body", message(post, host, bad), "", "", 401, true},
		{"whole body sent", message(post, host, bad, length), goodBody, "", 401, true},
		{"whole body sent, good token", message(post, host, good, "Content-Length: 2"), "[]", "", 400, true},
		{"body unsent", message(post, host, bad, length), "", goodBody, 401, false},
		{"body half sent", message(post, host, bad, length), goodBody[:5], goodBody[5:], 401, false},
		{"chunks unsent", message(post, host, bad, chunked), "", "3\r\nabc\r\n0\r\n\r\n", 401, false},
		{"body unsent, wrong type", message(post, host, good, length, "Content-Type: text/plain"), "", goodBody, 415, false},
		{"body unsent, wrong path", message("POST /nope HTTP/1.1", host, good, length), "", goodBody, 404, false},
		{"body unsent, wrong method", message("PUT /auth/session HTTP/1.1", host, good, length), "", goodBody, 405, false},
		{"300 KiB announced", message(post, host, bad, "Content-Length: 307200"), "", "", 401, false},
		{"300 KiB in a chunk", message(post, host, bad, chunked), "", "4b000\r\n" + strings.Repeat(" ", 307200) + "\r\n0\r\n\r\n", 401, false},
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
			a := w.answer(t, "POST")
			wantError(t, a, test.want, map[int]string{400: "bad_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}[test.want])
			if took := time.Since(start); took > readTimeout/2 {
				t.Errorf("answered after %s", took)
			}
			_, _ = io.WriteString(w, test.after+next) // may be closed
			if !test.reuse {
				w.wantClosed(t)
				return
			}
			if a := w.answer(t, "GET"); a.status != 200 {
				t.Errorf("GET /livez on the same connection = %d, want 200", a.status)
			}
		})
	}
	ts.wantNoKeys(t)
}

func TestExpectContinue(t *testing.T) {
	ts := newTestServer(t, nil)
	head := func(authorization string) string {
		return message("POST /auth/session HTTP/1.1", "Host: x", authorization, goodLength, "Expect: 100-continue")
	}
	w := ts.dial(t)
	w.send(t, head(ts.authorization(t)))
	if a := w.answer(t, "POST"); a.status != 100 {
		t.Fatalf("POST with Expect and a good token = %d, want 100", a.status)
	}
	w.send(t, goodBody)
	ts.wantSession(t, w.answer(t, "POST"))

	w = ts.dial(t)
	w.send(t, head("Authorization: Bearer x.y.z"))
	wantError(t, w.answer(t, "POST"), 401, "unauthorized")
	_ = w.CloseWrite()
	w.wantClosed(t) // and no late 100
}

// net/http cancels the request of a caller that closes its side. It has asked, and reads.
func TestHalfClose(t *testing.T) {
	ts, gate := newSlowTestServer(t, nil)
	request := ts.goodRequest(t)
	t.Run("fast", func(t *testing.T) {
		w := ts.dial(t)
		w.send(t, request)
		_ = w.CloseWrite()
		ts.wantSession(t, w.answer(t, "POST"))
		w.wantClosed(t)
	})
	t.Run("Redis answers after 300 ms", func(t *testing.T) {
		gate.Lock()
		w := ts.dial(t)
		w.send(t, request)
		ts.busy(t, 1)
		_ = w.CloseWrite()
		time.AfterFunc(300*time.Millisecond, gate.Unlock)
		ts.wantSession(t, w.answer(t, "POST"))
		w.wantClosed(t)
	})
}

// Not parallel: it counts the process's goroutines.
func TestDisconnect(t *testing.T) {
	ts, gate := newSlowTestServer(t, nil)
	testClient.CloseIdleConnections()
	serving := func() int {
		stacks := make([]byte, 4<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "net/http.(*conn).serve(")
	}
	waitFor(t, 5*time.Second, "idle connections to close", func() bool { return serving() == 0 })
	gate.Lock()
	const callers = 10
	for i := range callers {
		w := ts.dial(t)
		w.send(t, ts.goodRequest(t))
		ts.busy(t, int64(i)+1)
		_ = w.SetLinger(0) // a reset, not half a close
		_ = w.Close()
	}
	gate.Unlock()
	ts.busy(t, 0)
	waitFor(t, 5*time.Second, "the connections' goroutines to end", func() bool { return serving() == 0 })
	if text := ts.log.String(); strings.Contains(text, "panic") || strings.Count(text, `"msg":"request"`) != callers+1 {
		t.Errorf("log = %s, want %d requests and no panic", text, callers+1)
	}
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
}

func TestMaxInFlight(t *testing.T) {
	ts, gate := newSlowTestServer(t, map[string]string{"MAX_IN_FLIGHT": "2"})
	token := ts.token(t)
	gate.Lock()
	answers := make(chan answer)
	for range 2 {
		go func() { answers <- ts.post(t, token, goodBody) }()
	}
	ts.busy(t, 2)
	start := time.Now()
	for _, h := range []http.Header{{"Authorization": {"Bearer " + token}}, {"Authorization": {"Bearer x"}}, {"Content-Type": {"text/plain"}}} {
		e := wantError(t, ts.do(t, "POST", "/auth/session", h, strings.NewReader(goodBody)), 503, "unavailable")
		if !strings.Contains(e.Message, "too many requests") {
			t.Errorf("message = %q", e.Message)
		}
	}
	// They come before it, and health does not count.
	wantError(t, ts.do(t, "GET", "/auth/session", nil, nil), 405, "method_not_allowed")
	wantError(t, ts.do(t, "POST", "/nope", nil, nil), 404, "not_found")
	if a := ts.do(t, "GET", "/livez", nil, nil); a.status != 200 {
		t.Errorf("GET /livez = %d, want 200", a.status)
	}
	if took := time.Since(start); took > readTimeout/2 {
		t.Errorf("refused after %s", took)
	}
	gate.Unlock()
	for range 2 {
		ts.wantSession(t, <-answers)
	}
	ts.wantSession(t, ts.post(t, token, goodBody))
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
	e := wantError(t, a, 500, "fault")
	if strings.Contains(string(a.body), "what went wrong") {
		t.Errorf("the answer %s tells of the panic", a.body)
	}
	line := ts.logged(t, a)
	stack, _ := line["stack"].(string)
	if line["error_id"] != e.ID || line["level"] != "ERROR" || line["cause"] != "panic: what went wrong" || !strings.Contains(stack, "createSession") {
		t.Errorf("log line = %v", line)
	}

	w.send(t, request) // the connection is still good
	w.wantClosed(t)    // and aborted, without an answer

	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
	if n := ts.inFlight.Load(); n != 0 {
		t.Errorf("%d requests in work after all have ended", n)
	}
	for what, want := range map[string]int{`"stack"`: 1, "http: panic": 0} {
		if n := strings.Count(ts.log.String(), what); n != want {
			t.Errorf("the log has %s %d times, want %d", what, n, want)
		}
	}
}

func TestRequestLog(t *testing.T) {
	ts := newTestServer(t, nil)
	token := ts.token(t)
	const path = "/auth/session?access_token=SECRET-query"
	good := `{"end_user_id":"SECRET-user","redirect_uri":"https://a.example/?SECRET-r","cancel_uri":"https://a.example/?SECRET-c","x":"SECRET-x"}`
	bad := strings.Replace(good, "https:", "httpx:", 1)
	header := func(token string) http.Header {
		return http.Header{"Authorization": {"Bearer " + token}, "X-Forwarded-For": {"203.0.113.7"}, "True-Client-Ip": {"203.0.113.7"},
			"X-Real-Ip": {"203.0.113.7"}, "Forwarded": {"for=203.0.113.7"}, "Cookie": {"SECRET-cookie"}, "User-Agent": {"SECRET-agent"}}
	}
	always := []string{"time", "level", "msg", "request_id", "method", "route", "remote_ip", "status", "duration_us"}
	failed := append(slices.Clone(always), "error", "error_id", "cause")
	tests := []struct {
		name, path, token, body string
		status                  int
		route                   string
		members                 []string
	}{
		{"created", path, token, good, 200, "/auth/session", append(slices.Clone(always), "client_id", "session", "unknown_members")},
		{"created under v1", "/v1" + path, token, goodBody, 200, "/v1/auth/session", append(slices.Clone(always), "client_id", "session")},
		{"bad field", path, token, bad, 400, "/auth/session", append(slices.Clone(failed), "client_id", "unknown_members")},
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
			for name, want := range map[string]any{"msg": "request", "method": "POST", "route": test.route, "remote_ip": "127.0.0.1", "status": float64(test.status), "level": "INFO"} {
				if line[name] != want {
					t.Errorf("%s = %v, want %v", name, line[name], want)
				}
			}
			if us, ok := line["duration_us"].(float64); !ok || us < 0 || us > 10_000_000 {
				t.Errorf("duration_us = %v", line["duration_us"])
			}
			if test.status == 200 {
				var s sessionAnswer
				a.decode(t, &s)
				if line["session"] != s.ID || line["client_id"] != "acme" {
					t.Errorf("session = %v, client_id = %v, want %s, acme", line["session"], line["client_id"], s.ID)
				}
				if strings.Contains(ts.log.String(), s.SessionID) {
					t.Errorf("the log has the session_id")
				}
				return
			}
			var e errorAnswer
			a.decode(t, &e)
			if line["error"] != e.Name || line["error_id"] != e.ID {
				t.Errorf("error = %v, %v, want %s, %s", line["error"], line["error_id"], e.Name, e.ID)
			}
		})
	}
	for _, secret := range []string{"SECRET", token, strings.Split(token, ".")[1], "203.0.113.7", "eu_1"} {
		if strings.Contains(ts.log.String(), secret) {
			t.Errorf("the log has %q: %s", secret, ts.log.String())
		}
	}
}

// No refusal quotes the request: not in its body, not in its headers.
func TestNothingEchoed(t *testing.T) {
	ts := newTestServer(t, nil)
	good := "Bearer " + ts.token(t)
	const mark = "MaRk7"
	tests := []struct{ method, path, authorization, contentType, body string }{
		{"POST", "/" + mark, good, "", ""},
		{mark, "/auth/session?" + mark, good, "", ""},
		{"POST", "/auth/session", mark, "", goodBody},
		{"POST", "/auth/session", "Bearer " + mark, "", goodBody},
		{"POST", "/auth/session", "Bearer " + mark + ".b.c", "", goodBody},
		{"POST", "/auth/session", good, "text/" + mark, goodBody},
		{"POST", "/auth/session", good, "", mark},
		{"POST", "/auth/session", good, "", `{"` + mark + `":` + mark},
		{"POST", "/auth/session", good, "", `{"` + mark + `":1,"` + mark + `":2}`},
		{"POST", "/auth/session", good, "", `{"` + mark + `":"\ud800"}`},
		{"POST", "/auth/session", good, "", `{"` + mark + `":"` + mark + `"}`},
		{"POST", "/auth/session", good, "", `{"` + mark + `":"` + mark + `","end_user_id":"` + mark + ` ","institution_id":"` + mark + `\n","redirect_uri":"` + mark + `","cancel_uri":"http://` + mark + `.example/"}`},
		{"POST", "/auth/session", good, "", `{"end_user_id":["` + mark + `"],"institution_id":{"` + mark + `":1},"redirect_uri":"https://` + mark + `@x/","cancel_uri":"` + mark + `:x"}`},
		{"POST", "/auth/session", good, "", `{"end_user_id":"` + strings.Repeat(mark, 100) + `","cancel_uri":"https://a.example/` + mark + `#` + mark + `"}`},
		{"POST", "/auth/session", good, "", strings.Repeat(mark, 20_000)},
	}
	for _, test := range tests {
		h := http.Header{"Authorization": {test.authorization}, "Content-Type": {test.contentType}, "X-Request-Id": {mark + "!"}, "Origin": {mark}, "Cookie": {mark}}
		a := ts.do(t, test.method, test.path, h, strings.NewReader(test.body))
		text := strings.ToLower(fmt.Sprintf("%v %s", a.header, a.body))
		if a.status < 400 || strings.Contains(text, strings.ToLower(mark)) {
			t.Errorf("%s %s %.100s = %d %s, want a refusal without %s", test.method, test.path, test.body, a.status, text, mark)
		}
	}
	ts.wantNoKeys(t)
}

func TestRequestID(t *testing.T) {
	ts := newTestServer(t, nil)
	long := strings.Repeat("x", 64)
	for id, keep := range map[string]bool{
		"a": true, "0123-abc_DEF.9": true, long: true,
		"": false, long + "x": false, "a b": false, "a/b": false, "a,b": false, `a"b`: false, "a:b": false, "é": false, "a\tb": false, "{}": false,
	} {
		for _, path := range []string{"/livez", "/readyz", "/nope", "/auth/session"} {
			a := ts.do(t, "GET", path, http.Header{"X-Request-Id": {id}}, nil)
			got := a.header.Get("X-Request-Id")
			if (got == id) != keep || !validRequestID(got) || len(a.header["X-Request-Id"]) != 1 {
				t.Errorf("GET %s with X-Request-Id %q has %q, want it kept %t", path, id, a.header["X-Request-Id"], keep)
			}
		}
	}
	first, second := ts.do(t, "GET", "/livez", nil, nil), ts.do(t, "GET", "/livez", nil, nil)
	if first.header.Get("X-Request-Id") == second.header.Get("X-Request-Id") {
		t.Errorf("two requests have the X-Request-Id %q", first.header.Get("X-Request-Id"))
	}
}

// All that has to wait for a time limit waits for it at the same time.
func TestSlowCallers(t *testing.T) {
	ts := newTestServer(t, nil)
	var running sync.WaitGroup
	defer running.Wait()
	start := func(name string, f func(*testing.T)) { running.Go(func() { t.Run(name, f) }) }
	good, bad := ts.authorization(t), "Authorization: Bearer x.y.z"
	const post, host = "POST /auth/session HTTP/1.1", "Host: x"

	bodies := map[string]struct {
		text    string
		dribble string // sent on, piece by piece, for as long as it lasts
	}{
		"nothing of a body":  {message(post, host, good, "Content-Length: 22"), ""},
		"half of a body":     {message(post, host, good, "Content-Length: 22") + goodBody[:11], ""},
		"all but a byte":     {message(post, host, good, fmt.Sprintf("Content-Length: %d", len(goodBody)+1)) + goodBody, ""},
		"no chunk":           {message(post, host, good, "Transfer-Encoding: chunked"), ""},
		"no last chunk":      {message(post, host, good, "Transfer-Encoding: chunked") + "16\r\n" + goodBody + "\r\n", ""},
		"dribbled body":      {message(post, host, good, "Content-Length: 60000"), " "},
		"dribbled chunks":    {message(post, host, good, "Transfer-Encoding: chunked"), "1\r\n \r\n"},
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
			if a.status == 100 {
				a = w.answer(t, "POST")
			}
			took := time.Since(began)
			wantError(t, a, 408, "timeout")
			if took < readTimeout-time.Second || took > readTimeout+3*time.Second {
				t.Errorf("408 after %s, want %s", took, readTimeout)
			}
			if got := a.header.Get("Connection"); got != "close" {
				t.Errorf("Connection = %q, want close", got)
			}
			w.wantClosed(t)
			if line := ts.logged(t, a); line["error"] != "timeout" || line["level"] != "INFO" {
				t.Errorf("log line = %v", line)
			}
		})
	}

	// Refused at once; what then comes is no request.
	start("refused, and the body comes too late", func(t *testing.T) {
		w := ts.dial(t)
		began := time.Now()
		w.send(t, message(post, host, bad, "Content-Length: 22")+goodBody[:11])
		wantError(t, w.answer(t, "POST"), 401, "unauthorized")
		if took := time.Since(began); took > readTimeout/2 {
			t.Errorf("401 after %s", took)
		}
		if _, err := w.in.ReadByte(); err == nil {
			t.Error("something came after the answer")
		}
		if took := time.Since(began); took > readTimeout/2 {
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
			if took := time.Since(began); took > readHeaderTimeout-time.Second {
				t.Errorf("answered after %s in a crowd of silent callers", took)
			}
			for _, w := range crowd {
				if rest, err := io.ReadAll(w.in); len(rest) > 0 && !bytes.HasPrefix(rest, []byte("HTTP/1.1 400 ")) {
					t.Fatalf("got %q, %v, want 400 or nothing", rest, err)
				}
			}
			if took := time.Since(began); took < readHeaderTimeout-time.Second || took > readHeaderTimeout+3*time.Second {
				t.Errorf("closed after %s, want %s", took, readHeaderTimeout)
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
		if took < readHeaderTimeout-time.Second || took > readHeaderTimeout+3*time.Second {
			t.Errorf("closed after %s, want %s", took, readHeaderTimeout)
		}
	})
}
