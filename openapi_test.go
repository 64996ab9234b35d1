package main

import (
	"bytes"
	"cmp"
	"encoding/json"
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

	"authsession/internal/redirecturi"
	"authsession/internal/testkit"

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
	headers map[string]*jsonschema.Schema // by canonical name; an answer has them all but WWW-Authenticate of a 403
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
			if header["required"] != true && status+name != "403WWW-Authenticate" {
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

// check tells how an answer differs from its description, and what a request that got 200 has that the description
// forbids. sent may be nil; an answer to HEAD has no body.
func (d *description) check(sent io.Reader, a testkit.Answer) error {
	want, ok := d.answers[a.Status]
	if !ok {
		return fmt.Errorf("status %d is not described", a.Status)
	}
	for name, schema := range want.headers {
		values := a.Header[name]
		if values == nil && a.Status == http.StatusForbidden && name == "Www-Authenticate" { // not for a client
			continue
		}
		if len(values) != 1 {
			return fmt.Errorf("%d with %s %q, want one", a.Status, name, values)
		}
		var value any = values[0]
		isInteger := schema.Types != nil && slices.Contains(schema.Types.ToStrings(), "integer")
		if n, err := strconv.Atoi(values[0]); err == nil && isInteger {
			value = n
		}
		if err := schema.Validate(value); err != nil {
			return fmt.Errorf("%d with %s %q: %w", a.Status, name, values[0], err)
		}
	}
	httpsOwn := []string{"Content-Type", "Content-Length", "Date", "Connection"}
	for name := range a.Header {
		if want.headers[name] == nil && !slices.Contains(httpsOwn, name) {
			return fmt.Errorf("%d with %s, which is not described", a.Status, name)
		}
	}
	media := a.Header.Get("Content-Type")
	schema := want.bodies[media]
	if schema == nil {
		medias := slices.Collect(maps.Keys(want.bodies))
		return fmt.Errorf("%d with Content-Type %q, want one of %q", a.Status, media, medias)
	}
	if len(a.Body) > 0 {
		body, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.Body))
		if err == nil {
			err = schema.Validate(body)
		}
		if err != nil {
			return fmt.Errorf("%d with body %s: %w", a.Status, a.Body, err)
		}
	}
	if a.Status != http.StatusOK || sent == nil {
		return nil
	}
	request, err := jsonschema.UnmarshalJSON(sent)
	if err == nil {
		err = d.request.Validate(request)
	}
	if err != nil {
		return fmt.Errorf("200 to a request that the description forbids: %w", err)
	}
	return nil
}

// wantDescribed checks an answer against openapi.yaml. Any path's errors are described there; what the operator's and
// -dev's paths and net/http itself answer is not. target is "" where it is not known.
func wantDescribed(t testing.TB, target string, sent io.Reader, a testkit.Answer) {
	t.Helper()
	path, _, _ := strings.Cut(strings.TrimPrefix(target, "/v1"), "?")
	switch a.Header.Get("Content-Type") {
	case "text/plain; charset=utf-8", "text/plain", "application/yaml", "application/json", "":
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
	testkit.Must(t, err)
	ts := newTestServer(t, nil)
	for method, want := range map[string]string{"GET": string(file), "HEAD": ""} {
		a := ts.do(t, method, "/openapi.yaml", nil, nil)
		a.WantHeaders(t, "application/yaml")
		if a.Status != 200 || string(a.Body) != want || a.Header.Get("Content-Length") != strconv.Itoa(len(file)) {
			t.Errorf("%s /openapi.yaml = %d with %d bytes, Content-Length %s, want the file's %d",
				method, a.Status, len(a.Body), a.Header.Get("Content-Length"), len(file))
		}
	}
	a := ts.do(t, "POST", "/openapi.yaml", nil, nil)
	a.WantError(t, 405, "method_not_allowed")
	if got := a.Header.Get("Allow"); got != "GET, HEAD" {
		t.Errorf("Allow = %q, want GET, HEAD", got)
	}
	ts.do(t, "GET", "/v1/openapi.yaml", nil, nil).WantError(t, 404, "not_found")
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
	testkit.Must(t, err)
	rows := regexp.MustCompile("(?m)^\\| ([45]\\d\\d) \\| `(\\w+)` \\|")
	var want []string
	for _, row := range rows.FindAllStringSubmatch(string(readme), -1) {
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

// What the service takes, the description allows. Lengths and alphabets are the same.
func TestOpenAPIRequest(t *testing.T) {
	check := func(body string, want bool) {
		t.Helper()
		request, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
		testkit.Must(t, err)
		_, _, refusal := parseBody([]byte(body))
		if err := described().request.Validate(request); (refusal == nil) != want || (err == nil) != want {
			t.Errorf("%.200s: the service says %v, openapi.yaml %v, want both to take it: %t", body, refusal, err, want)
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
	for value, want := range map[string]bool{
		`null`: true, `10`: false, `""`: true, `"` + long(128) + `"`: true, `"` + long(129) + `"`: false,
		`"!~"`: true, `" "`: false, `"é"`: false,
	} {
		check(`{"end_user_id":"eu_1","arrangement_id":`+value+`}`, want)
	}
	for value, want := range map[string]bool{
		`null`: true, `[]`: false, `""`: false, `{}`: false, `["a"]`: true, `["a","b"]`: true, `["a","a"]`: false,
		`[""]`: false, `[1]`: false, `[null]`: false, `["` + long(64) + `"]`: true, `["` + long(65) + `"]`: false,
		`["!~"]`: true, `[" "]`: false, `["é"]`: false, names(64): true, names(65): false,
	} {
		check(`{"end_user_id":"eu_1","permissions":`+value+`}`, want)
	}
	uris := map[string]bool{
		`null`: true, `""`: true, `{}`: false,
		`"https://a.example/` + long(2030) + `"`: true, `"https://a.example/` + long(2031) + `"`: false,
		`"https://a.example/#"`: false, `"https://a.example/%"`: false, `"https://a.example/ "`: false,
		`"ftp://a.example/"`: false, `"javascript:alert(1)"`: false, `"/done"`: false,
		`"com.example.app:/done"`: true, `"com.example.app:done"`: false,
	}
	for _, uri := range append(browserURIs(t), goodURIs...) {
		quoted, err := json.Marshal(uri)
		testkit.Must(t, err)
		uris[string(quoted)] = true
	}
	for value, want := range uris {
		for _, member := range []string{"redirect_uri", "cancel_uri"} {
			check(`{"end_user_id":"eu_1","`+member+`":`+value+`}`, want)
		}
	}
	check(`{}`, false)
	check(`[]`, false)
	check(`{"end_user_id":"eu_1","more":{}}`, true)
}

// browserURIs are those of internal/redirecturi's table of how browsers read URIs that the service takes.
func browserURIs(t *testing.T) (uris []string) {
	t.Helper()
	data, err := os.ReadFile("internal/redirecturi/testdata/whatwg.json")
	testkit.Must(t, err)
	var rows [][]string
	testkit.Must(t, json.Unmarshal(data, &rows))
	for _, row := range rows {
		if redirecturi.Check(row[0]) == nil {
			uris = append(uris, row[0])
		}
	}
	if len(uris) < 100 {
		t.Fatalf("%d of %d rows are good URIs, want 100 or more", len(uris), len(rows))
	}
	return uris
}

// The check of answers finds what is wrong with one.
func TestOpenAPICheck(t *testing.T) {
	ts := newTestServer(t, nil)
	made, refused := ts.post(t, ts.token(t), goodBody), ts.post(t, "", goodBody)
	header := func(name, value string) func(*testkit.Answer) {
		return func(a *testkit.Answer) { a.Header.Set(name, value) }
	}
	replace := func(old, new string) func(*testkit.Answer) {
		return func(a *testkit.Answer) { a.Body = bytes.Replace(a.Body, []byte(old), []byte(new), 1) }
	}
	for name, test := range map[string]struct {
		of   testkit.Answer
		edit func(*testkit.Answer)
		sent string
	}{
		"another status":      {refused, func(a *testkit.Answer) { a.Status = 403 }, ""},
		"unknown status":      {made, func(a *testkit.Answer) { a.Status = 201 }, ""},
		"header missing":      {made, func(a *testkit.Answer) { a.Header.Del("X-Request-Id") }, ""},
		"header twice":        {made, func(a *testkit.Answer) { a.Header.Add("Cache-Control", "no-store") }, ""},
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
		"request":             {made, func(*testkit.Answer) {}, `{"end_user_id":7}`},
	} {
		a := testkit.Answer{Status: test.of.Status, Header: test.of.Header.Clone(), Body: bytes.Clone(test.of.Body)}
		test.edit(&a)
		if err := described().check(strings.NewReader(cmp.Or(test.sent, goodBody)), a); err == nil {
			t.Errorf("%s: %d %v %s passes", name, a.Status, a.Header, a.Body)
		}
	}
}
