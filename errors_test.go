package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// logged returns the one log line of the request that got a.
func (ts *testServer) logged(t testing.TB, a testkit.Answer) map[string]any {
	t.Helper()
	id := a.Header.Get("X-Request-Id")
	text := fmt.Sprintf(`"request_id":%q`, id)
	testkit.WaitFor(t, 20*time.Second, "the log line", func() bool { return strings.Count(ts.log.String(), text) == 1 })
	return ts.log.Line(t, "request_id", id)
}

// wantError checks a refusal like "400 bad_request" whole: headers, six members, no echo, its log line, and that no key
// in Redis is new.
func (ts *testServer) wantError(t testing.TB, a testkit.Answer, wanted string) (
	e testkit.ErrorAnswer, line map[string]any,
) {
	t.Helper()
	code, name, _ := strings.Cut(wanted, " ")
	status, _ := strconv.Atoi(code)
	e, line = a.WantError(t, status, name), ts.logged(t, a)
	want := map[string]any{"status": float64(status), "error": name, "error_id": e.ID, "level": "INFO"}
	if status >= 500 {
		want["level"] = "ERROR"
	}
	for member := range want {
		if line[member] != want[member] || line["cause"] == nil {
			t.Errorf("log line of %s = %v, want %s %v and a cause", a.Body, line, member, want[member])
		}
	}
	text := fmt.Sprintf("%v %s", a.Header, a.Body)
	for _, sent := range []string{mark, "eu_1", "eyJ"} { // eyJ begins a token
		if strings.Contains(text, sent) {
			t.Errorf("answer %s echoes %s", text, sent)
		}
	}
	if status != 504 { // a write whose reply did not come may be there
		ts.wantKeys(t)
	}
	return e, line
}

// want checks that a is a session, "200", or an error like "400 bad_request".
func (ts *testServer) want(t testing.TB, a testkit.Answer, want string) {
	t.Helper()
	if want == "200" {
		ts.wantSession(t, a)
	} else {
		ts.wantError(t, a, want)
	}
}

// errorTable returns the rows of the README's error table as "400 bad_request".
func errorTable(t testing.TB) (rows []string) {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	testkit.Must(t, err)
	row := regexp.MustCompile("(?m)^\\| ([45]\\d\\d) \\| `(\\w+)` \\|")
	for _, row := range row.FindAllStringSubmatch(string(readme), -1) {
		rows = append(rows, row[1]+" "+row[2])
	}
	if len(rows) < 12 {
		t.Fatalf("rows of the README's error table = %q, want 12 or more", rows)
	}
	return rows
}

// The first check that fails answers. Each row of the README's error table has a case: 408 in TestSlowBody, the others
// here.
func TestErrors(t *testing.T) {
	file := clientsFile(t, `{"clients": {"acme": {"institution_ids": [], "sessions_per_minute": 1}}}`)
	nowhere := "127.0.0.1:" + redistest.FreePort()
	now := time.Now()
	up := newTestServer(t, map[string]string{"CLIENTS_FILE": file}, withClock(func() time.Time { return now }))
	noRedis := newTestServer(t, map[string]string{"REDIS_URL": "redis://" + nowhere})
	noKeys := newTestServer(t, map[string]string{"JWKS_URL": "file:///nonexistent"})
	broken := newTestServer(t, nil, withClock(func() time.Time { panic("what went wrong") }))
	slow, gate := newSlowTestServer(t, map[string]string{"STORE_TIMEOUT": "1s"})
	gate.Lock()
	defer gate.Unlock()
	good, other, weak := up.token(t), tokenOf(t, "other"), signed(t, map[string]any{"client_id": "other", "scope": "x"})
	const form, rule = "application/x-www-form-urlencoded", `{"institution_id":"1","end_user_id":"u"}`
	const unsent = 1 << 20 // announced: no answer waits for it
	covered := []string{"408 timeout"}
	for _, test := range []struct {
		name               string
		ts                 *testServer
		request            string // "": POST /auth/session
		token, media, body string
		length             int // of the body where it is not sent whole
		want               string
		header             string // WWW-Authenticate, Allow or Retry-After
		cause              string // a part of the log line's
	}{
		{name: "path", ts: up, request: "GET /auth", token: "a", media: form, body: "{", want: "404 not_found"},
		{name: "method", ts: up, request: "GET /auth/session", token: "a", media: form, want: "405 method_not_allowed",
			header: "POST"},
		{name: "no token", ts: up, media: form, body: "{", want: "401 unauthorized", header: noToken},
		{name: "token before type", ts: up, token: "a", media: form, want: "401 unauthorized", header: invalidToken},
		{name: "token before size", ts: up, token: "a", length: unsent, want: "401 unauthorized", header: invalidToken},
		{name: "scope before client", ts: up, token: weak, media: form, want: "403 forbidden", header: lacksScope},
		{name: "client before type", ts: up, token: other, media: form, body: "{", want: "403 forbidden"},
		{name: "client before size", ts: up, token: other, length: unsent, want: "403 forbidden"},
		{name: "type before body", ts: up, token: good, media: form, body: "{", want: "415 unsupported_media_type"},
		{name: "type before size", ts: up, token: good, media: form, length: unsent, want: "415 unsupported_media_type"},
		{name: "size before body", ts: up, token: good, length: unsent, want: "413 request_too_large"},
		{name: "body", ts: up, token: good, body: "{", want: "400 bad_request"},
		{name: "fields before rules", ts: up, token: good, body: `{"institution_id":"1"}`, want: "400 bad_request"},
		{name: "rules", ts: up, token: good, body: rule, want: "400 invalid_institution_id"},
		{name: "session", ts: up, token: good, body: goodBody, want: "200"},
		{name: "rules before rate", ts: up, token: good, body: rule, want: "400 invalid_institution_id"},
		{name: "rate", ts: up, token: good, body: goodBody, want: "429 too_many_requests", header: "60"},
		{name: "fields before store", ts: noRedis, token: good, body: `{}`, want: "400 bad_request"},
		{name: "store", ts: noRedis, token: good, body: goodBody, want: "503 unavailable", header: "1", cause: nowhere},
		{name: "slow store", ts: slow, token: good, body: goodBody, want: "504 timeout", header: "1"},
		{name: "panic", ts: broken, token: good, body: goodBody, want: "500 fault", cause: "what went wrong"},
		{name: "no keys", ts: noKeys, token: good, body: goodBody, want: "503 unavailable", header: "1", cause: "key set"},
		{name: "no keys, no token", ts: noKeys, body: goodBody, want: "401 unauthorized", header: noToken},
		{name: "not ready, no Redis", ts: noRedis, request: "GET /readyz", want: "503 unavailable", header: "1"},
		{name: "not ready, no keys", ts: noKeys, request: "GET /readyz", want: "503 unavailable", header: "1"},
	} {
		covered = append(covered, test.want)
		t.Run(test.name, func(t *testing.T) {
			credentials := strings.TrimSuffix("Bearer "+test.token, "Bearer ")
			a := test.ts.exchange(t, message(cmp.Or(test.request, "POST /auth/session")+" HTTP/1.1", "Host: "+mark,
				"Authorization: "+credentials, "Content-Type: "+cmp.Or(test.media, "application/json"), "Cookie: "+mark,
				"X-Request-Id: "+mark+"!", fmt.Sprintf("Content-Length: %d", cmp.Or(test.length, len(test.body))))+test.body)
			h := a.Header
			if got := cmp.Or(h.Get("Www-Authenticate"), h.Get("Allow"), h.Get("Retry-After")); got != test.header {
				t.Errorf("WWW-Authenticate, Allow or Retry-After = %q, want %q", got, test.header)
			}
			if test.want == "200" {
				test.ts.wantSession(t, a)
				return
			}
			e, line := test.ts.wantError(t, a, test.want)
			if cause := fmt.Sprint(line["cause"]); test.cause != "" &&
				(!strings.Contains(cause, test.cause) || strings.Contains(e.Message, test.cause)) {
				t.Errorf("message = %q, cause = %q, want %q in the cause alone", e.Message, cause, test.cause)
			}
			// TestBody and TestOpenAPI have the messages of 400, and /readyz is not in openapi.yaml.
			if described := strings.ReplaceAll(openAPI, "''", "'"); a.Status != 400 && test.request != "GET /readyz" &&
				!strings.Contains(described, e.Message) {
				t.Errorf("the message %q is no example of openapi.yaml", e.Message)
			}
		})
	}
	for _, row := range errorTable(t) {
		if !slices.Contains(covered, row) {
			t.Errorf("the README's error %s has no case", row)
		}
	}
}

// A panic is one log line with its stack. http.ErrAbortHandler drops the connection.
func TestPanic(t *testing.T) {
	var calls atomic.Int32
	ts := newTestServer(t, map[string]string{"MAX_IN_FLIGHT": "1"}, withClock(func() time.Time {
		switch calls.Add(1) {
		case 1:
			panic("what went wrong")
		case 2:
			panic(http.ErrAbortHandler)
		}
		return time.Now()
	}))
	w := ts.open(t, goodRequest(t))
	_, line := ts.wantError(t, w.answer(t, "POST"), "500 fault")
	cause, _ := line["cause"].(string)
	if !strings.HasPrefix(cause, "panic: what went wrong\n") || !strings.Contains(cause, "createSession") {
		t.Errorf("log line = %v, want the panic and its stack", line)
	}
	_, _ = io.WriteString(w, goodRequest(t)) // on the same connection
	w.wantClosed(t)
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody)) // in the one place, which both have left
	if strings.Count(ts.log.String(), "[running]") != 1 || ts.log.Has("http: panic") {
		t.Errorf("log = %s, want one stack", ts.log)
	}
}

const sessionPath, goaError = "/auth/session", "application/vnd.goa.error"

// description has the schemas of openapi.yaml's one operation.
type description struct {
	request *jsonschema.Schema
	bodies  map[string]*jsonschema.Schema // of answers, by status and media type: "200 application/json"
	headers map[string]*jsonschema.Schema // of answers, by status and canonical name: "400 Goa-Error"
}

var described = sync.OnceValues(func() (d description, err error) {
	type object = map[string]any
	text, err := os.ReadFile("openapi.yaml")
	var document object
	if err = errors.Join(err, yaml.Unmarshal(text, &document)); err != nil {
		return d, err
	}
	compiler := jsonschema.NewCompiler() // OpenAPI 3.1's schemas are JSON Schema 2020-12
	compiler.AssertFormat()
	err = compiler.AddResource("openapi.yaml", document)
	schema := func(path ...string) *jsonschema.Schema {
		for i := range path {
			path[i] = strings.ReplaceAll(path[i], "/", "~1")
		}
		s, failed := compiler.Compile("openapi.yaml#/" + strings.Join(path, "/"))
		err = errors.Join(err, failed)
		return s
	}
	d = description{bodies: map[string]*jsonschema.Schema{}, headers: map[string]*jsonschema.Schema{},
		request: schema("paths", sessionPath, "post", "requestBody", "content", "application/json", "schema")}
	operation := document["paths"].(object)[sessionPath].(object)["post"].(object)
	for status, response := range operation["responses"].(object) {
		for media := range response.(object)["content"].(object) {
			d.bodies[status+" "+media] = schema("paths", sessionPath, "post", "responses", status, "content", media, "schema")
		}
		for name, header := range response.(object)["headers"].(object) {
			at := []string{"paths", sessionPath, "post", "responses", status, "headers", name, "schema"}
			if ref, ok := header.(object)["$ref"].(string); ok {
				at = append(strings.Split(strings.TrimPrefix(ref, "#/"), "/"), "schema")
			}
			d.headers[status+" "+http.CanonicalHeaderKey(name)] = schema(at...)
		}
	}
	return d, err
})

// check compares an answer, and the request's body where the answer is 200, with their schemas.
func (d description) check(sent string, a testkit.Answer) error {
	status := strconv.Itoa(a.Status)
	for key, schema := range d.headers {
		name, ok := strings.CutPrefix(key, status+" ")
		values := a.Header[name]
		if !ok || values == nil && key == "403 Www-Authenticate" { // not where the client is not listed
			continue
		}
		if len(values) != 1 {
			return fmt.Errorf("%s has %s %q, want one", status, name, values)
		}
		var value any = values[0]
		if schema.Types != nil && slices.Contains(schema.Types.ToStrings(), "integer") {
			value, _ = strconv.Atoi(values[0])
		}
		if err := schema.Validate(value); err != nil {
			return err
		}
	}
	for name := range a.Header {
		ofHTTP := []string{"Content-Type", "Content-Length", "Date", "Connection"}
		if d.headers[status+" "+name] == nil && !slices.Contains(ofHTTP, name) {
			return fmt.Errorf("%s has %s, which is not described", status, name)
		}
	}
	schema := d.bodies[status+" "+a.Header.Get("Content-Type")]
	if schema == nil {
		return fmt.Errorf("%s %s is not described", status, a.Header.Get("Content-Type"))
	}
	if len(a.Body) == 0 { // of HEAD
		return nil
	}
	body, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.Body))
	if err = errors.Join(err, schema.Validate(body)); err != nil || a.Status != 200 || sent == "" {
		return err
	}
	return d.checkRequest(sent)
}

func (d description) checkRequest(body string) error {
	request, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
	return errors.Join(err, d.request.Validate(request))
}

// wantDescribed checks an answer and its request's body against openapi.yaml, which has the session's answers and the
// errors of every path. target is "" where it is not known.
func wantDescribed(t testing.TB, target, sent string, a testkit.Answer) {
	t.Helper()
	d, err := described()
	testkit.Must(t, err)
	path, _, _ := strings.Cut(strings.TrimPrefix(target, "/v1"), "?")
	if path != sessionPath && a.Header.Get("Content-Type") != goaError {
		return
	}
	if err := d.check(sent, a); err != nil {
		t.Errorf("openapi.yaml: answer %d %v %s: %v", a.Status, a.Header, a.Body, err)
	}
}

func TestOpenAPI(t *testing.T) {
	file, err := os.ReadFile("openapi.yaml")
	testkit.Must(t, err)
	ts := newTestServer(t, nil)
	a := ts.do(t, "GET", "/openapi.yaml", nil, "")
	if a.WantHeaders(t, "application/yaml"); a.Status != 200 || !bytes.Equal(a.Body, file) {
		t.Errorf("GET /openapi.yaml = %d, %d bytes, want the file", a.Status, len(a.Body))
	}
	for _, body := range []string{`{"end_user_id":"eu_1",}`, `{"cancel_uri":"/cancel"}`,
		`{"end_user_id":"eu_1","redirect_uri":"https://acme.com/#"}`} {
		e, _ := ts.wantError(t, ts.post(t, ts.token(t), body), "400 bad_request")
		if !bytes.Contains(file, []byte(e.Message)) {
			t.Errorf("the message to %s, %q, is no example of openapi.yaml", body, e.Message)
		}
	}
	d, err := described()
	testkit.Must(t, err)
	var rows []string
	for key, name := range d.headers {
		if status, ok := strings.CutSuffix(key, " Goa-Error"); ok && name.Const != nil {
			rows = append(rows, fmt.Sprint(status, " ", *name.Const))
		} else if ok {
			for _, value := range name.Enum.Values {
				rows = append(rows, fmt.Sprint(status, " ", value))
			}
		}
	}
	if want := errorTable(t); !slices.Equal(slices.Sorted(slices.Values(rows)), slices.Sorted(slices.Values(want))) {
		t.Errorf("errors in openapi.yaml = %q, want the README's %q", rows, want)
	}
}
