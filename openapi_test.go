package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// description is what openapi.yaml says of its one operation, ready to compare with.
type description struct {
	servers []string // base URLs, with {origin}
	request *jsonschema.Schema
	answers map[int]describedAnswer // by status
}

type describedAnswer struct {
	headers map[string]*jsonschema.Schema // by canonical name; an answer has them all
	bodies  map[string]*jsonschema.Schema // by media type
}

const (
	sessionPath = "/auth/session"
	goaError    = "application/vnd.goa.error"
)

var described = sync.OnceValue(func() *description {
	d, err := parseDescription(openAPI)
	if err != nil {
		panic(err)
	}
	return d
})

// parseDescription compiles the schemas of an OpenAPI 3.1 document, which are JSON Schema 2020-12.
func parseDescription(text string) (*description, error) {
	type object = map[string]any
	var document object
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("openapi.yaml", document); err != nil {
		return nil, err
	}
	var failed error
	schema := func(path ...string) *jsonschema.Schema {
		for i := range path {
			path[i] = strings.ReplaceAll(path[i], "/", "~1")
		}
		s, err := compiler.Compile("openapi.yaml#/" + strings.Join(path, "/"))
		if err != nil && failed == nil {
			failed = err
		}
		return s
	}
	d := &description{
		request: schema("paths", sessionPath, "post", "requestBody", "content", "application/json", "schema"),
		answers: map[int]describedAnswer{},
	}
	for _, server := range document["servers"].([]any) {
		d.servers = append(d.servers, server.(object)["url"].(string))
	}
	shared := document["components"].(object)["headers"].(object)
	operation := document["paths"].(object)[sessionPath].(object)["post"].(object)
	for status, response := range operation["responses"].(object) {
		a := describedAnswer{map[string]*jsonschema.Schema{}, map[string]*jsonschema.Schema{}}
		for name, header := range response.(object)["headers"].(object) {
			header, at := header.(object), []string{"paths", sessionPath, "post", "responses", status, "headers", name}
			if ref, ok := header["$ref"].(string); ok {
				name := strings.TrimPrefix(ref, "#/components/headers/")
				header, at = shared[name].(object), []string{"components", "headers", name}
			}
			if header["required"] != true {
				return nil, fmt.Errorf("header %s of %s is not required", name, status)
			}
			a.headers[http.CanonicalHeaderKey(name)] = schema(append(at, "schema")...)
		}
		for media := range response.(object)["content"].(object) {
			a.bodies[media] = schema("paths", sessionPath, "post", "responses", status, "content", media, "schema")
		}
		n, err := strconv.Atoi(status)
		if err != nil {
			return nil, err
		}
		d.answers[n] = a
	}
	return d, failed
}

// check tells how an answer differs from its description, and what a request that got
// 200 has that the description forbids. sent may be nil; an answer to HEAD has no body.
func (d *description) check(sent io.Reader, a answer) error {
	want, ok := d.answers[a.status]
	if !ok {
		return fmt.Errorf("status %d is not described", a.status)
	}
	for name, schema := range want.headers {
		values := a.header[name]
		if len(values) != 1 {
			return fmt.Errorf("%d with %s %q, want one", a.status, name, values)
		}
		var value any = values[0]
		if n, err := strconv.Atoi(values[0]); err == nil && schema.Types != nil && slices.Contains(schema.Types.ToStrings(), "integer") {
			value = n
		}
		if err := schema.Validate(value); err != nil {
			return fmt.Errorf("%d with %s %q: %w", a.status, name, values[0], err)
		}
	}
	for name := range a.header {
		if want.headers[name] == nil && !slices.Contains([]string{"Content-Type", "Content-Length", "Date", "Connection"}, name) {
			return fmt.Errorf("%d with %s, which is not described", a.status, name)
		}
	}
	schema := want.bodies[a.header.Get("Content-Type")]
	if schema == nil {
		return fmt.Errorf("%d with Content-Type %q, want one of %q", a.status, a.header.Get("Content-Type"), slices.Collect(maps.Keys(want.bodies)))
	}
	if len(a.body) > 0 {
		body, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.body))
		if err == nil {
			err = schema.Validate(body)
		}
		if err != nil {
			return fmt.Errorf("%d with body %s: %w", a.status, a.body, err)
		}
	}
	if a.status != http.StatusOK || sent == nil {
		return nil
	}
	request, err := jsonschema.UnmarshalJSON(sent)
	if err != nil && strings.Contains(err.Error(), "exceeded max depth") { // of encoding/json; the service has none
		return nil
	}
	if err == nil {
		err = d.request.Validate(request)
	}
	if err != nil {
		return fmt.Errorf("200 to a request that the description forbids: %w", err)
	}
	return nil
}

// wantDescribed checks an answer against openapi.yaml. Any path's errors are described there;
// the operator's paths and net/http itself also answer in plain text, which is not. target
// is "" where it is not known.
func wantDescribed(t testing.TB, target string, sent io.Reader, a answer) {
	t.Helper()
	path, _, _ := strings.Cut(strings.TrimPrefix(target, "/v1"), "?")
	switch a.header.Get("Content-Type") {
	case "text/plain; charset=utf-8", "text/plain", "application/yaml", "":
		if path != sessionPath {
			return
		}
	}
	if err := described().check(sent, a); err != nil {
		t.Errorf("openapi.yaml: %s: %v", target, err)
	}
}

func TestOpenAPIServed(t *testing.T) {
	file, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	ts := newTestServer(t, nil)
	for method, want := range map[string]string{"GET": string(file), "HEAD": ""} {
		a := ts.do(t, method, "/openapi.yaml", nil, nil)
		wantHeaders(t, a, "application/yaml")
		if a.status != 200 || string(a.body) != want || a.header.Get("Content-Length") != strconv.Itoa(len(file)) {
			t.Errorf("%s /openapi.yaml = %d with %d bytes, Content-Length %s, want the file's %d", method, a.status, len(a.body), a.header.Get("Content-Length"), len(file))
		}
	}
	a := ts.do(t, "POST", "/openapi.yaml", nil, nil)
	wantError(t, a, 405, "method_not_allowed")
	if got := a.header.Get("Allow"); got != "GET, HEAD" {
		t.Errorf("Allow = %q, want GET, HEAD", got)
	}
	wantError(t, ts.do(t, "GET", "/v1/openapi.yaml", nil, nil), 404, "not_found")
}

// Each server that the document names serves the operation.
func TestOpenAPIServers(t *testing.T) {
	ts := newTestServer(t, nil)
	var bases []string
	for _, server := range described().servers {
		base := strings.TrimPrefix(server, "{origin}")
		bases = append(bases, base)
		ts.wantSession(t, ts.do(t, "POST", base+sessionPath, ts.jsonHeader(t), strings.NewReader(goodBody)))
	}
	if !slices.Equal(bases, []string{"", "/v1"}) {
		t.Errorf("servers are at %q, want none and /v1", bases)
	}
}

// The README's error table and the document have the same rows.
func TestOpenAPIErrorTable(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, row := range regexp.MustCompile("(?m)^\\| ([45]\\d\\d) \\| `(\\w+)` \\|").FindAllStringSubmatch(string(readme), -1) {
		want = append(want, row[1]+" "+row[2])
	}
	if len(want) < 12 {
		t.Fatalf("rows of the README's error table = %q, want 12 or more", want)
	}
	var got []string
	for status, answer := range described().answers {
		if status == 200 {
			continue
		}
		name := answer.headers["Goa-Error"]
		var names []any
		if name.Const != nil {
			names = append(names, *name.Const)
		} else {
			names = name.Enum.Values
		}
		for _, name := range names {
			got = append(got, fmt.Sprintf("%d %s", status, name))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("errors in openapi.yaml = %q, want the README's %q", got, want)
	}
}

// What the service takes, the description allows; and lengths and alphabets are the same.
func TestOpenAPIRequest(t *testing.T) {
	check := func(body string, want bool) {
		t.Helper()
		request, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_, _, refusal := parseSessionRequest([]byte(body))
		if err := described().request.Validate(request); (refusal == nil) != want || (err == nil) != want {
			t.Errorf("%.200s: the service says %v, openapi.yaml %v, want both to take it: %v", body, refusal, err, want)
		}
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	for value, want := range map[string]bool{
		`null`: false, `1`: false, `""`: false, `"` + long(128) + `"`: true, `"` + long(129) + `"`: false,
		`"!~"`: true, `" "`: false, `"\u007f"`: false, `"é"`: false, `"a\n"`: false,
	} {
		check(`{"end_user_id":`+value+`}`, want)
	}
	for value, want := range map[string]bool{
		`null`: true, `10`: false, `""`: true, `"` + long(64) + `"`: true, `"` + long(65) + `"`: false,
		`"!~"`: true, `" "`: false, `"é"`: false, `"a\n"`: false,
	} {
		check(`{"end_user_id":"eu_1","institution_id":`+value+`}`, want)
	}
	for _, member := range []string{"redirect_uri", "cancel_uri"} {
		for value, want := range map[string]bool{
			`null`: true, `""`: true, `{}`: false, `"https://a.example/` + long(2030) + `"`: true, `"https://a.example/` + long(2031) + `"`: false,
			`"https://a.example/#"`: false, `"https://a.example/%"`: false, `"https://a.example/ "`: false, `"ftp://a.example/"`: false, `"javascript:alert(1)"`: false,
			`"/done"`: false, `"com.example.app:/done"`: true, `"com.example.app:done"`: false,
		} {
			check(`{"end_user_id":"eu_1","`+member+`":`+value+`}`, want)
		}
		for _, uri := range uriTests()[true] {
			check(string(encodeJSON(map[string]string{"end_user_id": "eu_1", member: uri})), true)
		}
	}
	check(`{}`, false)
	check(`[]`, false)
	check(`{"end_user_id":"eu_1","more":{}}`, true)
}

// The check of answers finds what is wrong with one.
func TestOpenAPICheck(t *testing.T) {
	ts := newTestServer(t, nil)
	made, refused := ts.post(t, ts.token(t), goodBody), ts.post(t, "", goodBody)
	header := func(name, value string) func(*answer) {
		return func(a *answer) { a.header.Set(name, value) }
	}
	replace := func(old, new string) func(*answer) {
		return func(a *answer) { a.body = bytes.Replace(a.body, []byte(old), []byte(new), 1) }
	}
	for name, test := range map[string]struct {
		of   answer
		edit func(*answer)
		sent string
	}{
		"another status":      {refused, func(a *answer) { a.status = 403 }, ""},
		"unknown status":      {made, func(a *answer) { a.status = 201 }, ""},
		"header missing":      {made, func(a *answer) { a.header.Del("X-Request-Id") }, ""},
		"header twice":        {made, func(a *answer) { a.header.Add("Cache-Control", "no-store") }, ""},
		"header's value":      {made, header("Cache-Control", "no-cache"), ""},
		"header of the class": {refused, header("Goa-Error", "forbidden"), ""},
		"header undescribed":  {made, header("Server", "x"), ""},
		"media type":          {made, header("Content-Type", "text/json"), ""},
		"error's media type":  {refused, header("Content-Type", "application/json"), ""},
		"member missing":      {made, replace(`"id":`, `"di":`), ""},
		"member more":         {refused, replace(`{`, `{"more":1,`), ""},
		"member's type":       {made, replace(`"expires_at":`, `"expires_at":0.`), ""},
		"another name":        {refused, replace(`"unauthorized"`, `"forbidden"`), ""},
		"another boolean":     {refused, replace(`"temporary":false`, `"temporary":true`), ""},
		"no JSON":             {made, replace(`{`, ``), ""},
		"request":             {made, func(*answer) {}, `{"end_user_id":7}`},
	} {
		a := answer{test.of.status, test.of.header.Clone(), bytes.Clone(test.of.body)}
		test.edit(&a)
		if err := described().check(strings.NewReader(cmp.Or(test.sent, goodBody)), a); err == nil {
			t.Errorf("%s: %d %v %s passes", name, a.status, a.header, a.body)
		}
	}
}
