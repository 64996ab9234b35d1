package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"authsession/internal/redistest"
	"authsession/internal/seal"
	"authsession/internal/testkit"
)

func TestCreateSession(t *testing.T) {
	ts := newTestServer(t, nil)
	// The reference's own example, with only the base URL changed.
	const reference = `{ "cancel_uri": "https://acme.com/cancel", "end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", ` +
		`"institution_id": "10", "redirect_uri": "https://acme.com/success" }`
	referenceWant := map[string]string{
		"end_user_id": `"eu_2yRHN2ag2y4p8kCtm5DOeccZEXB"`, "institution_id": `"10"`,
		"redirect_uri": `"https://acme.com/success"`, "cancel_uri": `"https://acme.com/cancel"`}
	least := map[string]string{"end_user_id": `"eu_1"`}
	const uri = `"https://acme.com/cb?a=1&b=%3C'~"` // which HTML's escapes would change
	tests := []struct {
		name, path, body string
		want             map[string]string // of the members that the body decides
	}{
		{"reference", "/auth/session", reference, referenceWant},
		{"reference under v1", "/v1/auth/session", reference, referenceWant},
		{"required alone", "/auth/session", goodBody, least},
		{"optional null", "/auth/session",
			`{"end_user_id":"eu_1","institution_id":null,"redirect_uri":null,"cancel_uri":null}`, least},
		{"optional empty", "/auth/session",
			`{"end_user_id":"eu_1","institution_id":"","redirect_uri":"","cancel_uri":""}`, least},
		{"institution_id alone", "/auth/session", `{"end_user_id":"eu_1","institution_id":"a&<b>"}`,
			map[string]string{"end_user_id": `"eu_1"`, "institution_id": `"a&<b>"`}},
		{"redirect_uri alone", "/auth/session", `{"end_user_id":"eu_1","redirect_uri":` + uri + `}`,
			map[string]string{"end_user_id": `"eu_1"`, "redirect_uri": uri}},
		{"cancel_uri alone, escaped", "/auth/session", `{"end_user_id":"eu_1","cancel_uri":"HTTPS:\/\/ACME.com\u002f"}`,
			map[string]string{"end_user_id": `"eu_1"`, "cancel_uri": `"HTTPS://ACME.com/"`}},
		{"what to share, of a consent to renew", "/v1/auth/session",
			`{"permissions":["accounts","\u0062alances:read","<&>"],"arrangement_id":"arr_1","end_user_id":"eu_1"}`,
			map[string]string{"end_user_id": `"eu_1"`, "permissions": `["accounts","balances:read","<&>"]`,
				"arrangement_id": `"arr_1"`}},
		{"permissions alone", "/auth/session", `{"end_user_id":"eu_1","permissions":["a"],"arrangement_id":""}`,
			map[string]string{"end_user_id": `"eu_1"`, "permissions": `["a"]`}},
		{"arrangement_id alone", "/auth/session", `{"end_user_id":"eu_1","permissions":null,"arrangement_id":"a"}`,
			map[string]string{"end_user_id": `"eu_1"`, "arrangement_id": `"a"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := time.Now().Unix()
			h := ts.jsonHeader(t)
			h.Set("X-Fiskil-Version", "2025-01-01") // which callers of the reference send
			a := ts.do(t, "POST", test.path, h, strings.NewReader(test.body))
			after := time.Now().Unix()
			record := ts.wantSession(t, a)
			var s testkit.SessionAnswer
			a.Decode(t, &s)
			if record.CreatedAt < before || record.CreatedAt > after || s.ExpiresAt != record.CreatedAt+30*60 {
				t.Errorf("created_at %d, expires_at %d, want %d and 30 minutes later", record.CreatedAt, s.ExpiresAt, before)
			}
			var members map[string]any
			if err := json.Unmarshal(a.Body, &members); err != nil || len(members) != 4 || !a.EndsInNewline() {
				t.Errorf("answer %q, want four members and a newline", a.Body)
			}
			if want := "https://consent.example/start?v=1&sess_id=" + s.SessionID; s.AuthURL != want {
				t.Errorf("auth_url = %q, want %q", s.AuthURL, want)
			}

			value, err := ts.redis.Get(t.Context(), ts.key(s.SessionID)).Bytes()
			testkit.Must(t, err)
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
	ts.wantSessions(t, len(tests))
}

// A sealed record is nobody's but the secret's; all else about the session is as without.
func TestSealRecords(t *testing.T) {
	ts := newTestServer(t, map[string]string{"SEAL_RECORDS": "true"})
	a := ts.post(t, ts.token(t), `{"end_user_id":"eu_1","redirect_uri":"https://acme.com/"}`)
	var s testkit.SessionAnswer
	a.Decode(t, &s)
	value, err := ts.redis.Get(t.Context(), ts.key(s.SessionID)).Bytes()
	testkit.Must(t, err)
	if value[0] != 1 || bytes.Contains(value, []byte("eu_1")) || bytes.Contains(value, []byte("acme")) {
		t.Errorf("the record is %q, want it sealed", value)
	}
	record, err := seal.Open(s.SessionID, value)
	var got session
	if err != nil || json.Unmarshal(record, &got) != nil || got.ID != s.ID || got.EndUserID != "eu_1" {
		t.Errorf("the record opens to %s, %v, want session %s of eu_1", record, err, s.ID)
	}
	at, err := ts.redis.ExpireTime(t.Context(), ts.key(s.SessionID)).Result()
	if err != nil || int64(at/time.Second) != s.ExpiresAt {
		t.Errorf("EXPIRETIME = %d, %v, want expires_at %d", at/time.Second, err, s.ExpiresAt)
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

// names is a JSON array of n different names.
func names(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(i))
	}
	return `["` + strings.Join(all, `","`) + `"]`
}

// strictjson's tests have all of JSON; here is what its rules come to for a caller.
func TestBodies(t *testing.T) {
	ts := newTestServer(t, nil)
	id := func(value string) string { return `{"end_user_id":` + value + `}` }
	and := func(members string) string { return `{"end_user_id":"eu_1",` + members + `}` }
	x := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }
	uri := func(n int) string { return `"https://a.example/` + strings.Repeat("x", n-18) + `"` }
	// nested is a body of so many levels, its own object counted.
	nested := func(levels int) string {
		return and(`"x":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1))
	}
	const twice = "the body must not give a member name twice"
	tests := []struct {
		name, body string
		begins     string // the message; "" is 200
	}{
		{"all fields", and(`"institution_id":"10","redirect_uri":"https://a.example/","cancel_uri":"a.b:/"`), ""},
		{"nothing", "", "the body must be one JSON object"},
		{"white space", " \r\n\t ", "the body must be one JSON object"},
		{"null", `null`, "the body must be one JSON object"},
		{"array", `[` + goodBody + `]`, "the body must be one JSON object"},
		{"form", `end_user_id=eu_1`, "the body "},
		{"white space around it", "\r\n\t " + goodBody + " \n\n\t\r", ""},
		{"letter after it", goodBody + "x", "the body must be valid JSON"},
		{"object after it", goodBody + goodBody, "the body must be valid JSON"},
		{"trailing comma", `{"end_user_id":"eu_1",}`, "the body must be valid JSON"},
		{"byte order mark", "\ufeff" + goodBody, "the body "},
		{"UTF-16 BE", encoded(goodBody, 2, true), "the body "},
		{"UTF-16 with its mark", "\xff\xfe" + encoded(goodBody, 2, false), "the body "},
		{"UTF-32 LE", encoded(goodBody, 4, false), "the body "},
		{"UTF-32 BE", encoded(goodBody, 4, true), "the body "},
		{"stray byte", id("\"eu\xff\""), "the body must be UTF-8"},

		{"empty object", `{}`, "end_user_id "},
		{"end_user_id null", id(`null`), "end_user_id "},
		{"end_user_id empty", id(`""`), "end_user_id "},
		{"end_user_id a space", id(`" "`), "end_user_id "},
		{"end_user_id a tab", id(`"\t"`), "end_user_id "},
		{"end_user_id a no-break space", id(`"\u00a0"`), "end_user_id "},
		{"end_user_id a number", id(`1`), "end_user_id must be a string"},
		{"end_user_id a boolean", id(`true`), "end_user_id must be a string"},
		{"end_user_id an object", id(`{}`), "end_user_id must be a string"},
		{"end_user_id an array", id(`["u"]`), "end_user_id must be a string"},
		{"end_user_id of 128 bytes", id(x(128)), ""},
		{"end_user_id of 129 bytes", id(x(129)), "end_user_id "},
		{"end_user_id of 10,000 bytes", id(x(10_000)), "end_user_id "},
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
		{"end_user_id twice, the same", and(`"end_user_id":"eu_1"`), twice},
		{"end_user_id twice, different", and(`"end_user_id":"eu_2"`), twice},
		{"end_user_id twice, once escaped", and(`"end_user\u005fid":"eu_1"`), twice},

		{"unknown members of any JSON",
			and(`"a":null,"b":[true,-1.5e+3,"\u00e9😀",{}],"c":{"d":{"e":[[],{"end_user_id":3}]}},"":0`), ""},
		{"unknown member of 1,000 levels", nested(1000), ""},
		{"unknown member of 1,001 levels", nested(1001), "the body must not nest deeper than 1000 levels"},
		{"unknown member 32,000 levels deep", nested(32_000), "the body must not nest deeper than 1000 levels"},
		{"unknown member open 64,000 levels deep", `{"x":` + strings.Repeat("[", 64_000), "the body "},
		{"names twice in one object inside an unknown member", and(`"x":{"y":1,"y":2}`), twice},
		{"names twice, once escaped, deep inside", and(`"x":[[{"z":{"y":1,"\u0079":2}}]]`), twice},
		{"names twice in objects of their own", and(`"x":{"x":{"x":1}},"y":[{"x":1},{"x":2}]`), ""},
		{"unknown member twice", and(`"x":1,"x":1`), twice},
		{"bad number inside an unknown member", and(`"x":{"y":01}`), "the body must be valid JSON"},
		{"surrogate inside an unknown member", and(`"x":["\ud800"]`), "the body must be valid JSON"},

		{"institution_id a number", and(`"institution_id":10`), "institution_id must be a string"},
		{"institution_id of 64 bytes", and(`"institution_id":` + x(64)), ""},
		{"institution_id of 65 bytes", and(`"institution_id":` + x(65)), "institution_id "},
		{"institution_id a space", and(`"institution_id":" "`), "institution_id "},
		{"redirect_uri false", and(`"redirect_uri":false`), "redirect_uri must be a string"},
		{"redirect_uri a space", and(`"redirect_uri":" "`), "redirect_uri "},
		{"cancel_uri an object", and(`"cancel_uri":{"a":1}`), "cancel_uri must be a string"},
		{"cancel_uri of 2,048 bytes", and(`"cancel_uri":` + uri(2048)), ""},
		{"cancel_uri of 2,049 bytes", and(`"cancel_uri":` + uri(2049)), "cancel_uri "},

		{"permissions empty", and(`"permissions":[]`), "permissions must have 1 to 64 names"},
		{"permissions a string", and(`"permissions":"accounts"`), "permissions must be an array of strings"},
		{"permissions an empty string", and(`"permissions":""`), "permissions must be an array of strings"},
		{"permissions an object", and(`"permissions":{"a":1}`), "permissions must be an array of strings"},
		{"permissions with a number", and(`"permissions":["a",1]`), "permissions must be an array of strings"},
		{"permissions with null", and(`"permissions":[null]`), "permissions must be an array of strings"},
		{"permissions with an empty name", and(`"permissions":["a",""]`), "permissions must have names of 1 to 64 bytes"},
		{"permissions with a space", and(`"permissions":["a b"]`), "permissions must have names of "},
		{"permissions with an umlaut", and(`"permissions":["ä"]`), "permissions must have names of "},
		{"permissions of 64 bytes", and(`"permissions":[` + x(64) + `]`), ""},
		{"permissions of 65 bytes", and(`"permissions":["a",` + x(65) + `]`), "permissions must have names of "},
		{"64 permissions", and(`"permissions":` + names(64)), ""},
		{"65 permissions", and(`"permissions":` + names(65)), "permissions must have 1 to 64 names"},
		{"permissions that differ in case", and(`"permissions":["a","A"]`), ""},
		{"permissions with one twice", and(`"permissions":["a","b","\u0061"]`), "permissions must not have a name twice"},
		{"permissions twice", and(`"permissions":["a"],"permissions":["a"]`), twice},
		{"arrangement_id a number", and(`"arrangement_id":1`), "arrangement_id must be a string"},
		{"arrangement_id of 128 bytes", and(`"arrangement_id":` + x(128)), ""},
		{"arrangement_id of 129 bytes", and(`"arrangement_id":` + x(129)), "arrangement_id must be at most 128 bytes"},
		{"arrangement_id a space", and(`"arrangement_id":" "`), "arrangement_id must be printable ASCII"},
	}
	sessions := 0
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := ts.post(t, ts.token(t), test.body)
			if test.begins == "" {
				sessions++
				ts.wantSession(t, a)
				return
			}
			name := "bad_request"
			if strings.HasPrefix(test.begins, "institution_id ") {
				name = "invalid_institution_id"
			}
			e := a.WantError(t, 400, name)
			if !strings.HasPrefix(e.Message, test.begins) || strings.Contains(e.Message, ";") {
				t.Errorf("message = %q, want %q and nothing of other members", e.Message, test.begins)
			}
		})
	}
	ts.wantSessions(t, sessions)
}

// The exact name counts, whatever stands beside it.
func TestOtherSpelling(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, body := range []string{
		`{"END_USER_ID":"x","end_user_id":"eu_1"}`, `{"end_user_id":"eu_1","END_USER_ID":"x"}`,
	} {
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
		{`{"cancel_uri":1,"redirect_uri":"http://a.example/","institution_id":"a b","end_user_id":""}`, "bad_request",
			[]string{"end_user_id", "institution_id", "redirect_uri", "cancel_uri"}},
		{`{"cancel_uri":"x","institution_id":[]}`, "bad_request",
			[]string{"end_user_id", "institution_id", "cancel_uri"}},
		{`{"end_user_id":"eu_1","cancel_uri":"x","redirect_uri":"x","institution_id":"\n"}`, "invalid_institution_id",
			[]string{"institution_id", "redirect_uri", "cancel_uri"}},
		{`{"end_user_id":"eu_1","institution_id":7}`, "invalid_institution_id", []string{"institution_id"}},
		{`{"end_user_id":"eu_1","cancel_uri":"x","redirect_uri":"x"}`, "bad_request",
			[]string{"redirect_uri", "cancel_uri"}},
		{`{"arrangement_id":1,"permissions":[],"cancel_uri":"x","institution_id":"\n","end_user_id":"eu_1"}`,
			"invalid_institution_id", []string{"institution_id", "cancel_uri", "permissions", "arrangement_id"}},
		{`{"end_user_id":"eu_1","arrangement_id":1,"permissions":1}`, "bad_request",
			[]string{"permissions", "arrangement_id"}},
	}
	for _, test := range tests {
		e := ts.post(t, ts.token(t), test.body).WantError(t, 400, test.name)
		names := func(message, member string) bool { return strings.HasPrefix(message, member+" ") }
		if !slices.EqualFunc(strings.Split(e.Message, "; "), test.members, names) {
			t.Errorf("message to %s = %q, want one of each of %v", test.body, e.Message, test.members)
		}
	}
	ts.wantSessions(t, 0)
}

func TestUnknownMembers(t *testing.T) {
	ts := newTestServer(t, nil)
	unknown := func(a testkit.Answer) string {
		names, err := json.Marshal(ts.logged(t, a)["unknown_members"])
		testkit.Must(t, err)
		return string(names)
	}
	body := `{"Permissions":["a",{"b":null}],"__proto__":{"end_user_id":"x"},"expires_at":1,"session_id":"stolen",` +
		`"id":"mine","scope":"x","auth_url":"https://evil.example/","v":2,"client_id":"other","end_user_id":"eu_1",` +
		`"` + strings.Repeat("x", 63) + `é":1,"created_at":1,"more":1}`
	before := time.Now().Unix()
	a := ts.post(t, ts.token(t), body)
	record := ts.wantSession(t, a)
	want := session{Version: 1, ID: record.ID, ClientID: "acme", EndUserID: "eu_1",
		CreatedAt: record.CreatedAt, ExpiresAt: record.CreatedAt + 30*60}
	if !reflect.DeepEqual(record, want) || record.ID == "mine" || record.CreatedAt < before {
		t.Errorf("record = %+v, want %+v", record, want)
	}
	wantNames := `["Permissions","__proto__","expires_at","session_id","id","scope","auth_url","v","client_id","` +
		strings.Repeat("x", 63) + `\\xc3"]`
	if got := unknown(a); got != wantNames {
		t.Errorf("unknown_members = %s, want %s", got, wantNames)
	}

	long := strings.Repeat("y", 64)
	odd := `{"end_user_id":"e","` + "\u009b2J" + `":1,"\u202e":1,"a\u0000":1,"é":1}`
	for body, want := range map[string]string{
		goodBody: "null",
		odd:      `["\\u009b2J","\\u202e","a\\x00","\\u00e9"]`,
		`{"end_user_id":"eu_1","` + long + `z":1,"` + long + `":1}`: `["` + long + `","` + long + `"]`,
		`{"end_user_id":"","END_USER_ID":1}`:                        `["END_USER_ID"]`, // a refusal's too
	} {
		if got := unknown(ts.post(t, ts.token(t), body)); got != want {
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
		t.Run(fmt.Sprintf("%q, %q", test.types, test.encodings), func(t *testing.T) {
			h := http.Header{"Authorization": {"Bearer " + ts.token(t)}}
			if test.types != nil {
				h["Content-Type"] = test.types
			}
			if test.encodings != nil {
				h["Content-Encoding"] = test.encodings
			}
			a := ts.do(t, "POST", "/auth/session", h, strings.NewReader(test.body))
			switch test.want {
			case 200:
				ts.wantSession(t, a)
			case 400:
				a.WantError(t, 400, "bad_request")
			case 415:
				e := a.WantError(t, 415, "unsupported_media_type")
				if test.encodings == nil && !strings.Contains(e.Message, "Content-Type: application/json") {
					t.Errorf("message = %q, want it to say what to send", e.Message)
				}
			}
		})
	}
}

// The limit is on the body as sent. Beyond it the connection is of no more use.
func TestBodySizes(t *testing.T) {
	ts := newTestServer(t, nil)
	auth := ts.authorization(t)
	const post = "POST /auth/session HTTP/1.1"
	for _, test := range []struct {
		size, want int
		chunked    bool
	}{
		{64 << 10, 200, false}, {64<<10 + 1, 413, false}, {1 << 20, 413, false}, {100 << 20, 413, false},
		{64 << 10, 200, true}, {64<<10 + 1, 413, true}, {1 << 20, 413, true}, {100 << 20, 413, true},
	} {
		t.Run(fmt.Sprintf("%d bytes, chunked: %t", test.size, test.chunked), func(t *testing.T) {
			framing := fmt.Sprintf("Content-Length: %d", test.size)
			if test.chunked {
				framing = "Transfer-Encoding: chunked"
			}
			w := ts.dial(t)
			w.send(t, message(post, "Host: x", auth, framing))
			sent := make(chan struct{})
			go func() { // it is refused before all is sent
				defer close(sent)
				w.sendBody(test.size, test.chunked)
			}()
			a := w.answer(t, "POST")
			if test.want == 200 {
				ts.wantSession(t, a)
				return
			}
			a.WantError(t, 413, "request_too_large")
			if got := a.Header.Get("Connection"); got != "close" {
				t.Errorf("Connection = %q, want close", got)
			}
			w.wantClosed(t)
			_ = w.Close()
			<-sent
		})
	}
	t.Run("1 GiB announced, nothing sent", func(t *testing.T) {
		w := ts.dial(t)
		w.send(t, message(post, "Host: x", auth, "Content-Length: 1073741824"))
		w.answer(t, "POST").WantError(t, 413, "request_too_large")
		w.wantClosed(t)
	})
	t.Run("shorter than announced", func(t *testing.T) {
		w := ts.dial(t)
		w.send(t, message(post, "Host: x", auth, "Content-Length: 100")+goodBody)
		_ = w.CloseWrite()
		w.answer(t, "POST").WantError(t, 400, "bad_request")
		w.wantClosed(t)
	})
	ts.wantSessions(t, 2)
}

// sendBody sends goodBody and white space up to size, until the other side has enough of it.
func (w *wire) sendBody(size int, chunked bool) {
	part := goodBody
	for err := error(nil); size > 0 && err == nil; {
		part = part[:min(len(part), size)]
		size -= len(part)
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
}

// The rows of the contract's error table that need no trouble with Redis, time or our own code. token_test.go has more
// of 400, 401 and 403, server_test.go of 404, 405, 408 and 500, and TestUnavailable 503 and 504.
func TestErrors(t *testing.T) {
	ts := newTestServer(t, nil)
	good := "Bearer " + ts.token(t)
	noScope := "Bearer " + testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"scope": "api:user.read"}))
	tests := []struct {
		name                                     string
		method, path, authorization, media, body string
		status                                   int
		class                                    string
		header, value                            string // one that the answer must have
	}{
		{"body", "POST", "/auth/session", good, "application/json", "[]",
			400, "bad_request", "Www-Authenticate", ""},
		{"institution_id", "POST", "/auth/session", good, "application/json", `{"end_user_id":"x","institution_id":" "}`,
			400, "invalid_institution_id", "Www-Authenticate", ""},
		{"no token", "POST", "/auth/session", "", "application/json", goodBody,
			401, "unauthorized", "Www-Authenticate", `Bearer`},
		{"bad token", "POST", "/auth/session", "Bearer a.b.c", "application/json", goodBody,
			401, "unauthorized", "Www-Authenticate", `Bearer error="invalid_token"`},
		{"no scope", "POST", "/auth/session", noScope, "application/json", goodBody,
			403, "forbidden", "Www-Authenticate", `Bearer error="insufficient_scope", scope="api:user.write"`},
		{"path", "POST", "/auth", good, "application/json", goodBody, 404, "not_found", "Allow", ""},
		{"method", "PUT", "/auth/session", good, "application/json", goodBody, 405, "method_not_allowed", "Allow", "POST"},
		{"override of the method", "GET", "/auth/session?_method=POST", good, "application/json", goodBody,
			405, "method_not_allowed", "Allow", "POST"},
		{"body too large", "POST", "/auth/session", good, "application/json", goodBody + strings.Repeat(" ", maxBody),
			413, "request_too_large", "", ""},
		{"form", "POST", "/auth/session", good, "application/x-www-form-urlencoded", "end_user_id=eu_1",
			415, "unsupported_media_type", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{"Content-Type": {test.media}, "X-Http-Method-Override": {"POST"},
				"Cookie": {"access_token=" + strings.TrimPrefix(good, "Bearer ")}}
			if test.authorization != "" {
				h.Set("Authorization", test.authorization)
			}
			a := ts.do(t, test.method, test.path, h, strings.NewReader(test.body))
			ts.wantRefused(t, a, test.status, test.class)
			if got := a.Header.Get(test.header); got != test.value {
				t.Errorf("%s = %q, want %q", test.header, got, test.value)
			}
		})
	}
	ts.wantSessions(t, 0)
}

// Trouble that is not the caller's is told at once, and the fields' comes before it.
func TestUnavailable(t *testing.T) {
	nowhere := "127.0.0.1:" + redistest.FreePort()
	noRedis := newTestServer(t, map[string]string{"REDIS_URL": "redis://" + nowhere})
	noKeys := newTestServer(t, map[string]string{"JWKS_URL": "file:///nonexistent/jwks.json"})
	slow, gate := newSlowTestServer(t, map[string]string{"STORE_TIMEOUT": "300ms"})
	gate.Lock()
	defer gate.Unlock()
	tests := []struct {
		name        string
		ts          *testServer
		token, body string
		status      int
		class       string
		cause       string // in the log line's
	}{
		{"nothing listens where Redis should", noRedis, noRedis.token(t), goodBody, 503, "unavailable", nowhere},
		{"a bad field, and no Redis", noRedis, noRedis.token(t), `{}`, 400, "bad_request", ""},
		{"Redis does not answer", slow, slow.token(t), goodBody, 504, "timeout", ""},
		{"no keys", noKeys, noKeys.token(t), goodBody, 503, "unavailable", "key set"},
		{"no token, and no keys to check one", noKeys, "", goodBody, 401, "unauthorized", "no bearer token"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			start := time.Now()
			a := test.ts.post(t, test.token, test.body)
			if took := time.Since(start); took > bodyTimeout/2 {
				t.Errorf("answered after %s", took)
			}
			e, line := test.ts.wantRefused(t, a, test.status, test.class)
			cause, _ := line["cause"].(string)
			if !strings.Contains(cause, test.cause) || test.status != 400 && strings.Contains(cause, e.Message) {
				t.Errorf("message = %q, cause %q, want another cause with %q", e.Message, cause, test.cause)
			}
			if strings.Contains(e.Message, nowhere) {
				t.Errorf("message = %q: it tells where Redis is", e.Message)
			}
		})
	}
	noKeys.wantSessions(t, 0)
}

func TestHealth(t *testing.T) {
	check := func(t *testing.T, ts *testServer, path string, status int, missing ...string) {
		t.Helper()
		a, head := ts.do(t, "GET", path, nil, nil), ts.do(t, "HEAD", path, nil, nil)
		if a.Status != status || head.Status != status || len(head.Body) > 0 {
			t.Fatalf("GET %s = %d %s, HEAD %d %s, want %d", path, a.Status, a.Body, head.Status, head.Body, status)
		}
		if status == 200 {
			a.WantHeaders(t, "text/plain; charset=utf-8")
			head.WantHeaders(t, "text/plain; charset=utf-8")
			return
		}
		e := a.WantError(t, status, "unavailable")
		head.WantHeaders(t, "application/vnd.goa.error")
		for _, what := range missing {
			if !strings.Contains(e.Message, what) {
				t.Errorf("%s says %q, want it to name %q", path, e.Message, what)
			}
		}
	}
	ts := newTestServer(t, nil)
	check(t, ts, "/livez", 200)
	check(t, ts, "/readyz", 200)
	ts.wantSessions(t, 0)
	ts.draining.Store(true)
	check(t, ts, "/livez", 200)
	check(t, ts, "/readyz", 503, "shutting down")
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody)) // not ready and still serving

	ts = newTestServer(t, map[string]string{
		"REDIS_URL": "redis://127.0.0.1:" + redistest.FreePort(), "JWKS_URL": "file:///nonexistent/jwks.json"})
	check(t, ts, "/livez", 200)
	check(t, ts, "/readyz", 503, "redis", "key set")
}

// One client holds at most three quarters of MAX_IN_FLIGHT. A place is taken when the body is there.
func TestMaxInFlight(t *testing.T) {
	ts, gate := newSlowTestServer(t, map[string]string{"MAX_IN_FLIGHT": "4"})
	token, other := ts.token(t), ts.tokenOf(t, "other")
	slow := ts.dial(t) // has no place
	slow.send(t, message("POST /auth/session HTTP/1.1", "Host: x", ts.authorization(t), goodLength)+goodBody[:1])
	gate.Lock()
	answers := make(chan testkit.Answer)
	for n := range 3 {
		go func() { answers <- ts.post(t, token, goodBody) }()
		ts.waitBusy(t, n+1)
	}
	start := time.Now()
	const own, all = "too many of this client's requests are in work", "too many requests are in work"
	wantFull := func(token, body, message string) {
		t.Helper()
		e := ts.post(t, token, body).WantError(t, 503, "unavailable")
		if e.Message != message {
			t.Errorf("message = %q, want %q", e.Message, message)
		}
	}
	wantFull(token, goodBody, own)
	wantFull(token, "{", own) // before the fields
	go func() { answers <- ts.post(t, other, goodBody) }()
	ts.waitBusy(t, 4)
	wantFull(other, goodBody, all)
	wantFull(token, goodBody, all)
	// What is checked before it is refused for itself, and health does not count.
	ts.do(t, "GET", "/auth/session", nil, nil).WantError(t, 405, "method_not_allowed")
	ts.post(t, "x", goodBody).WantError(t, 401, "unauthorized")
	h := http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {"text/plain"}}
	ts.do(t, "POST", "/auth/session", h, strings.NewReader(goodBody)).WantError(t, 415, "unsupported_media_type")
	if a := ts.do(t, "GET", "/livez", nil, nil); a.Status != 200 {
		t.Errorf("GET /livez = %d, want 200", a.Status)
	}
	slow.send(t, goodBody[1:])
	slow.answer(t, "POST").WantError(t, 503, "unavailable")
	if took := time.Since(start); took > bodyTimeout/2 {
		t.Errorf("refused after %s", took)
	}
	gate.Unlock()
	for range 4 {
		ts.wantSession(t, <-answers)
	}
	ts.wantSession(t, ts.post(t, token, goodBody))
}

// Larger bodies need a place while they are read, of which one client has three quarters too. Small ones need none.
func TestReadingPlaces(t *testing.T) {
	ts := newTestServer(t, map[string]string{"MAX_IN_FLIGHT": "4"})
	token, other := ts.token(t), ts.tokenOf(t, "other")
	begin := func(token, length string) *wire {
		w := ts.dial(t)
		w.send(t, message("POST /auth/session HTTP/1.1", "Host: x", "Authorization: Bearer "+token, length))
		return w
	}
	large, chunked := fmt.Sprintf("Content-Length: %d", smallBody+1), "Transfer-Encoding: chunked"
	for i, length := range []string{large, chunked, large} {
		begin(token, length)
		testkit.WaitFor(t, 5*time.Second, "a place to be taken", func() bool { return ts.reading.InUse() == i+1 })
	}
	for _, length := range []string{large, chunked} {
		begin(token, length).answer(t, "POST").WantError(t, 503, "unavailable")
	}
	padded := goodBody + strings.Repeat(" ", smallBody)
	ts.wantSession(t, ts.post(t, token, padded[:smallBody]))
	ts.wantSession(t, ts.post(t, other, padded))
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
		ts.waitBusy(t, 1)
		_ = w.CloseWrite()
		time.AfterFunc(300*time.Millisecond, gate.Unlock)
		ts.wantSession(t, w.answer(t, "POST"))
		w.wantClosed(t)
	})
}

// Not parallel: it counts the process's goroutines.
func TestDisconnect(t *testing.T) {
	ts, gate := newSlowTestServer(t, nil)
	testkit.Client.CloseIdleConnections()
	serving := func() int {
		stacks := make([]byte, 4<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "net/http.(*conn).serve(")
	}
	testkit.WaitFor(t, 5*time.Second, "idle connections to close", func() bool { return serving() == 0 })
	gate.Lock()
	const callers = 10
	for i := range callers {
		w := ts.dial(t)
		w.send(t, ts.goodRequest(t))
		ts.waitBusy(t, i+1)
		_ = w.SetLinger(0) // a reset, not half a close
		_ = w.Close()
	}
	gate.Unlock()
	ts.waitBusy(t, 0)
	testkit.WaitFor(t, 5*time.Second, "the connections' goroutines to end", func() bool { return serving() == 0 })
	if text := ts.log.String(); strings.Contains(text, "panic") || strings.Count(text, `"msg":"request"`) != callers+1 {
		t.Errorf("log = %s, want %d requests and no panic", text, callers+1)
	}
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
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
		{"POST", "/auth/session", good, "", `{"` + mark + `":{"` + mark + `":1,"` + mark + `":2}}`},
		{"POST", "/auth/session", good, "", `{"` + mark + `":"\ud800"}`},
		{"POST", "/auth/session", good, "", `{"` + mark + `":` + strings.Repeat(`{"`+mark+`":`, 1000)},
		{"POST", "/auth/session", good, "", `{"` + mark + `":"` + mark + `"}`},
		{"POST", "/auth/session", good, "", `{"` + mark + `":"` + mark + `","end_user_id":"` + mark + ` ",` +
			`"institution_id":"` + mark + `\n","redirect_uri":"` + mark + `","cancel_uri":"http://` + mark + `.example/"}`},
		{"POST", "/auth/session", good, "", `{"end_user_id":["` + mark + `"],"institution_id":{"` + mark + `":1},` +
			`"redirect_uri":"https://` + mark + `@x/","cancel_uri":"` + mark + `:x"}`},
		{"POST", "/auth/session", good, "", `{"end_user_id":"` + strings.Repeat(mark, 100) + `",` +
			`"cancel_uri":"https://a.example/` + mark + `#` + mark + `"}`},
		{"POST", "/auth/session", good, "", strings.Repeat(mark, 20_000)},
	}
	for _, test := range tests {
		h := http.Header{"Authorization": {test.authorization}, "Content-Type": {test.contentType},
			"X-Request-Id": {mark + "!"}, "Origin": {mark}, "Cookie": {mark}}
		a := ts.do(t, test.method, test.path, h, strings.NewReader(test.body))
		text := strings.ToLower(fmt.Sprintf("%v %s", a.Header, a.Body))
		if a.Status < 400 || strings.Contains(text, strings.ToLower(mark)) {
			t.Errorf("%s %s %.100s = %d %s, want a refusal without %s",
				test.method, test.path, test.body, a.Status, text, mark)
		}
	}
	ts.wantSessions(t, 0)
}
