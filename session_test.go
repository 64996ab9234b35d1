package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/seal"
	"authsession/internal/testkit"
)

// The answer and the record are checked byte for byte. The first body is the reference's own example.
func TestSessionRecord(t *testing.T) {
	ts := newTestServer(t, nil)
	const reference = `{ "cancel_uri": "https://acme.com/cancel", "end_user_id": "eu_2yRHN2ag2y4p8kCtm5DOeccZEXB", ` +
		`"institution_id": "10", "redirect_uri": "https://acme.com/success" }`
	const referenceWant = `"end_user_id":"eu_2yRHN2ag2y4p8kCtm5DOeccZEXB","institution_id":"10",` +
		`"redirect_uri":"https://acme.com/success","cancel_uri":"https://acme.com/cancel"`
	const least = `"end_user_id":"eu_1"`
	const uri = `,"redirect_uri":"https://acme.com/cb?a=1&b=%3C'~"` // which HTML's escapes would change
	for _, test := range []struct {
		name, path, body string
		want             string // the record's members between client_id and created_at
	}{
		{name: "reference", body: reference, want: referenceWant},
		{name: "reference under v1", path: "/v1/auth/session", body: reference, want: referenceWant},
		{name: "required alone", body: goodBody, want: least},
		{name: "null", want: least, body: `{"end_user_id":"eu_1","institution_id":null,"redirect_uri":null,` +
			`"cancel_uri":null,"permissions":null,"arrangement_id":null}`},
		{name: "empty", want: least, body: `{"end_user_id":"eu_1","institution_id":"","redirect_uri":"","cancel_uri":"",` +
			`"arrangement_id":""}`},
		{name: "redirect_uri", body: `{` + least + uri + `}`, want: least + uri},
		{name: "cancel_uri, escaped", body: `{"cancel_uri":"HTTPS:\/\/ACME.com\u002f","\u0065nd_user_id":"\u0065u_1"}`,
			want: least + `,"cancel_uri":"HTTPS://ACME.com/"`},
		{name: "renewal", want: least + `,"permissions":["a","b:read","<&>"],"arrangement_id":"arr_1"`,
			body: `{"permissions":["a","\u0062:read","<&>"],"arrangement_id":"arr_1",` + least + `}`},
		{name: "unknown members", want: least, body: `{"Permissions":["a"],"__proto__":{"end_user_id":"x"},"expires_at":1,` +
			`"session_id":"x","id":"x","scope":"x","auth_url":"https://evil.example/","v":2,"client_id":"x",` +
			`"END_USER_ID":"x","created_at":1,` + least + `,"End_User_Id":"x"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := time.Now().Unix()
			h := http.Header{"Authorization": {"Bearer " + ts.token(t)}, "X-Fiskil-Version": {"2025-01-01"}}
			a := ts.do(t, "POST", cmp.Or(test.path, sessionPath), h, test.body)
			s, value := ts.record(t, a)
			created := s.ExpiresAt - 30*60
			want := fmt.Sprintf(`{"v":1,"id":%q,"client_id":"acme",%s,"created_at":%d,"expires_at":%d}`,
				s.ID, test.want, created, s.ExpiresAt)
			if string(value) != want || created < before || created > time.Now().Unix() {
				t.Errorf("record = %s, want %s, created now", value, want)
			}
			answer := fmt.Sprintf(`{"auth_url":%q,"expires_at":%d,"id":%q,"session_id":%q}`,
				"https://consent.example/start?v=1&sess_id="+s.SessionID, s.ExpiresAt, s.ID, s.SessionID)
			if string(a.Body) != answer+"\n" {
				t.Errorf("answer = %s, want %s", a.Body, answer)
			}
		})
	}
	ts.wantKeys(t)
}

// With SEAL_RECORDS only the session's secret opens its record.
func TestSealRecords(t *testing.T) {
	ts := newTestServer(t, map[string]string{"SEAL_RECORDS": "true"})
	s, value := ts.record(t, ts.post(t, ts.token(t), goodBody))
	if value[0] != 1 || bytes.Contains(value, []byte("eu_1")) || bytes.Contains(value, []byte("acme")) {
		t.Errorf("record = %q, want it sealed", value)
	}
	text, err := seal.Open(s.SessionID, value)
	if err != nil || !strings.Contains(string(text), `{"v":1,"id":"`+s.ID+`","client_id":"acme","end_user_id":"eu_1",`) {
		t.Errorf("the record opens to %s, %v, want session %s of eu_1", text, err, s.ID)
	}
}

// Sessions that are made at the same time share no entropy.
func TestSessionIDs(t *testing.T) {
	ts := newTestServer(t, nil)
	answer := regexp.MustCompile(`"id":"[0-7][0-9a-hjkmnp-tv-z]{9}([0-9a-hjkmnp-tv-z]{16})","session_id":"([\w-]{22,})"}`)
	var seen sync.Map
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 50 {
				body := ts.post(t, ts.token(t), goodBody).Body
				parts := answer.FindSubmatch(body)
				if parts == nil {
					t.Errorf("answer = %s, want a ULID in lower case and a secret", body)
					return
				}
				for _, part := range parts[1:] {
					if _, known := seen.LoadOrStore(string(part), true); known {
						t.Errorf("answer = %s, but %s was there before", body, part)
					}
				}
			}
		})
	}
	callers.Wait()
}

// names is a JSON array of n different names.
func names(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%q", fmt.Sprint(i)))
	}
	return "[" + strings.Join(all, ",") + "]"
}

// internal/strictjson's tests have all of JSON and internal/redirecturi's all URIs. Here is what a caller is told.
func TestBody(t *testing.T) {
	ts := newTestServer(t, nil)
	d, err := described()
	testkit.Must(t, err)
	id := func(value string) string { return `{"end_user_id":` + value + `}` }
	and := func(members string) string { return `{"end_user_id":"eu_1",` + members + `}` }
	x := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }
	in := func(bits int) string { // UTF-16 or UTF-32, but for the zeros at one end
		return strings.Join(strings.Split(goodBody, ""), strings.Repeat("\x00", bits/8-1))
	}
	nested := func(levels int) string { // its own object counted
		return and(`"x":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1))
	}
	const alphabet = " must be printable ASCII without space"
	const ofNames = "permissions must have names of 1 to 64 bytes of printable ASCII without space"
	for _, group := range []struct {
		message string // how it begins; "": a session
		bodies  []string
	}{
		{bodies: []string{
			"\r\n\t " + goodBody + " \n\n\t\r", id(x(128)), id(`"` + strings.Repeat(`\u0078`, 128) + `"`),
			and(`"a":null,"b":[true,-1.5e+3,"\u00e9😀",{}],"c":{"d":{"e":[[],{"end_user_id":3}]}},"":0`), nested(1000),
			and(`"x":{"x":{"x":1}},"y":[{"x":1},{"x":2}]`), and(`"institution_id":` + x(64)),
			and(`"permissions":["a","A",` + x(64) + `]`), and(`"permissions":` + names(64)), and(`"arrangement_id":` + x(128))}},
		{message: "the body ", bodies: []string{
			"", " \r\n\t ", `null`, `[` + goodBody + `]`, `"end_user_id"`, `end_user_id=eu_1`, goodBody + "x",
			goodBody + goodBody, goodBody + "\n" + goodBody, goodBody + "\x00", goodBody + "]", goodBody + "\u2028",
			"\ufeff" + goodBody, "\x00" + in(16), "\xff\xfe" + in(16) + "\x00", in(32) + "\x00\x00\x00", "\x00\x00\x00" + in(32),
			id("\"\xff\""), id("\"\xc0\xaf\""), id("\"\xed\xa0\x80\""), id(`"\ud800"`),
			`{"end_user_id":"eu_1",}`, and(`/**/"x":1`), and("//\n\"x\":1"), `{'end_user_id':'eu_1'}`, `{end_user_id:"eu_1"}`,
			and(`"x":NaN`), and(`"x":+1`), and(`"x":01`), and(`"x":0x1`), and(`"x":["\ud800"]`), goodBody[:len(goodBody)-1],
			`{"x":` + strings.Repeat("[", 64_000), mark, `{"` + mark + `":` + mark, `{"` + mark + `":"\ud800"}`,
			`{"` + mark + `":` + strings.Repeat(`{"`+mark+`":`, 1000)}},
		{message: "the body must not begin with a byte order mark", bodies: []string{"\ufeff" + goodBody}},
		{message: "the body must be valid JSON: it ends too early, at byte offset 21", bodies: []string{
			`{"end_user_id":"eu_1"`, `{"end_user_id":"eu_1 `, `{"end_user_id":   nul`}},
		{message: "the body must be valid JSON: the error is at byte offset 21", bodies: []string{
			`{"end_user_id":"eu_1",}`, `{"end_user_id":"eu_1"]`, `{"end_user_id":"eu_1"x`}},
		{message: "the body must not give a member name twice", bodies: []string{
			and(`"end_user_id":"eu_1"`), and(`"end_user_id":"eu_2"`), and(`"end_user\u005fid":"eu_1"`), and(`"x":1,"x":1`),
			and(`"x":{"y":1,"y":2}`), and(`"x":[[{"z":{"y":1,"\u0079":2}}]]`), and(`"permissions":["a"],"permissions":["a"]`),
			`{"` + mark + `":{"` + mark + `":1,"` + mark + `":2}}`}},
		{message: "the body must not nest deeper than 1000 levels", bodies: []string{nested(1001), nested(32_000)}},
		{message: "end_user_id is required", bodies: []string{
			`{}`, id(`null`), id(`""`), `{"END_USER_ID":"eu_1"}`, `{"End_User_Id":"eu_1"}`, `{"end_u\u017fer_id":"eu_1"}`,
			`{"end_user_id":"","END_USER_ID":"eu_1"}`}},
		{message: "end_user_id must be a string", bodies: []string{id(`1`), id(`true`), id(`{}`), id(`["u"]`)}},
		{message: "end_user_id must be at most 128 bytes", bodies: []string{id(x(129)), id(x(10_000))}},
		{message: "end_user_id" + alphabet, bodies: []string{
			id(`" "`), id(`"\t"`), id(`"\u00a0"`), id(`"eu\u0000"`), id(`"eu\n"`), id(`"eu\u007f"`), id(`"eu\u202e"`),
			id(`"e u"`), id(`"eu😀"`)}},
		{message: "institution_id must be a string", bodies: []string{and(`"institution_id":10`)}},
		{message: "institution_id must be at most 64 bytes", bodies: []string{and(`"institution_id":` + x(65))}},
		{message: "institution_id" + alphabet, bodies: []string{and(`"institution_id":" "`)}},
		{message: "permissions must be an array of strings", bodies: []string{
			and(`"permissions":"a"`), and(`"permissions":""`), and(`"permissions":{"a":1}`), and(`"permissions":["a",1]`),
			and(`"permissions":[null]`)}},
		{message: "permissions must have 1 to 64 names", bodies: []string{
			and(`"permissions":[]`), and(`"permissions":` + names(65))}},
		{message: ofNames, bodies: []string{
			and(`"permissions":["a",""]`), and(`"permissions":["a b"]`), and(`"permissions":["ä"]`),
			and(`"permissions":["a",` + x(65) + `]`)}},
		{message: "permissions must not have a name twice", bodies: []string{and(`"permissions":["a","b","\u0061"]`)}},
		{message: "arrangement_id must be a string", bodies: []string{and(`"arrangement_id":1`)}},
		{message: "arrangement_id must be at most 128 bytes", bodies: []string{and(`"arrangement_id":` + x(129))}},
		{message: "arrangement_id" + alphabet, bodies: []string{and(`"arrangement_id":" "`)}},
	} {
		for _, body := range group.bodies {
			t.Run(fmt.Sprintf("%.60q", body), func(t *testing.T) {
				a := ts.post(t, ts.token(t), body)
				if group.message == "" {
					ts.wantSession(t, a)
					return
				}
				want := "400 bad_request"
				if strings.HasPrefix(group.message, "institution_id ") {
					want = "400 invalid_institution_id"
				}
				e, _ := ts.wantError(t, a, want)
				if !strings.HasPrefix(e.Message, group.message) || strings.Contains(e.Message, ";") {
					t.Errorf("message = %q, want %q and nothing of other members", e.Message, group.message)
				}
				if !strings.HasPrefix(group.message, "the body ") && d.checkRequest(body) == nil {
					t.Error("openapi.yaml allows it")
				}
			})
		}
	}
}

// Both URI members keep what is good byte for byte, and name themselves where it is not.
func TestBodyURIs(t *testing.T) {
	ts := newTestServer(t, nil)
	path := strings.Repeat("a", 2048-24)
	for _, member := range []string{"redirect_uri", "cancel_uri"} {
		for _, uri := range []string{
			"https://app.example.com/cb", "HTTPS://APP.Example.com:8443/Cb?state=1&next=https://evil.com",
			"https://[2001:db8::1]/", "http://localhost:3000/cb", "http://127.0.0.1/", "http://[::1]:51004/cb?a[0]=1",
			"com.example.app:/done", "com.example.app://done?x=1", "https://app.example.com/" + path,
		} {
			r := ts.wantSession(t, ts.post(t, ts.token(t), `{"end_user_id":"eu_1","`+member+`":"`+uri+`"}`))
			if got := map[string]string{"redirect_uri": r.RedirectURI, "cancel_uri": r.CancelURI}; got[member] != uri {
				t.Errorf("%s of the record = %q, want %q", member, got[member], uri)
			}
		}
		for _, value := range []string{
			`1`, `false`, `{"a":1}`, `" "`, `"http://app.example.com/cb"`, `"http://localhost.evil.com/"`, `"myapp://cb"`,
			`"/cb"`, `"//evil.com/cb"`, `"https:\\\\evil.com"`, `"https://app.example.com/cb#"`, `"https://a@app.example.com/"`,
			`"https://app.example.com/../x"`, `"https://app.example.com/%0a"`, `"https://app.example.com/\r\nSet-Cookie:x=1"`,
			`"com.example.app:done"`, `"javascript:alert(1)"`, `"https://аpp.example.com/"`,
			`"https://app.example.com/a` + path + `"`,
		} {
			e, _ := ts.wantError(t, ts.post(t, ts.token(t), `{"end_user_id":"eu_1","`+member+`":`+value+`}`), "400 bad_request")
			if !strings.HasPrefix(e.Message, member+" must ") {
				t.Errorf("message to %s %.80s = %q, want it to name the member", member, value, e.Message)
			}
		}
	}
}

// One answer names every broken field, in the contract's order.
func TestBodyFields(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, test := range []struct {
		body, want string
		members    []string
	}{
		{body: `{"cancel_uri":1,"redirect_uri":"http://` + mark + `/","institution_id":" ` + mark + `","end_user_id":""}`,
			want: "400 bad_request", members: []string{"end_user_id", "institution_id", "redirect_uri", "cancel_uri"}},
		{body: `{"arrangement_id":1,"permissions":[],"cancel_uri":"x","institution_id":"\n","end_user_id":"eu_1"}`,
			want:    "400 invalid_institution_id",
			members: []string{"institution_id", "cancel_uri", "permissions", "arrangement_id"}},
		{body: `{"end_user_id":"eu_1","cancel_uri":"` + mark + `:x","redirect_uri":"https://` + mark + `@x/` + mark + `#"}`,
			want: "400 bad_request", members: []string{"redirect_uri", "cancel_uri"}},
	} {
		e, _ := ts.wantError(t, ts.post(t, ts.token(t), test.body), test.want)
		begins := func(message, member string) bool { return strings.HasPrefix(message, member+" ") }
		if !slices.EqualFunc(strings.Split(e.Message, "; "), test.members, begins) {
			t.Errorf("message to %s = %q, want one of each of %q", test.body, e.Message, test.members)
		}
	}
}

// The log has 10 names of unknown members at most, each cut at 64 bytes and escaped.
func TestUnknownMembers(t *testing.T) {
	ts := newTestServer(t, nil)
	long := strings.Repeat("y", 64)
	for _, test := range []struct {
		body string
		want any
	}{
		{body: goodBody},
		{body: `{"end_user_id":"","END_USER_ID":1}`, want: []any{"END_USER_ID"}}, // a refusal's too
		{body: `{"end_user_id":"e","` + "\u009b2J" + `":1,"\u202e":1,"a\u0000":1,"é":1}`,
			want: []any{`\u009b2J`, `\u202e`, `a\x00`, `\u00e9`}},
		{body: `{"end_user_id":"e","` + long + `z":1,"` + long[1:] + `é":1}`, want: []any{long, long[1:] + `\xc3`}},
		{body: `{"0":0,"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0,"8":0,"9":0,"10":0,"end_user_id":"e"}`,
			want: []any{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}},
	} {
		if got := ts.logged(t, ts.post(t, ts.token(t), test.body))["unknown_members"]; !reflect.DeepEqual(got, test.want) {
			t.Errorf("unknown_members of %.80s = %q, want %q", test.body, got, test.want)
		}
	}
}

// FuzzBody compares the record with what encoding/json reads in the body.
func FuzzBody(f *testing.F) {
	for _, body := range []string{
		goodBody, `{"end_user_id":"\u0065u","institution_id":null,"redirect_uri":"","cancel_uri":"com.example.app:\/x"}`,
		`{"END_USER_ID":"x","end_user_id":"y","z":[{"end_user_id":1}]}`, `{"end_user_id":"e","permissions":[]}`,
		`{"end_user_id":"e","permissions":["accounts","\u0062"],"arrangement_id":"a"}`, `{"end_user_id":1}`,
		`{"end_user_id":"e","x":{"y":1,"y":1}}`, `{"end_user_id":"\ud800"}`, `{}`, `null`, `[{}]`, "{\"\xff\":1}",
	} {
		f.Add([]byte(body))
	}
	ts := newTestServer(f, map[string]string{"SESSION_TTL": "1m", "LOG_LEVEL": "error"})
	f.Fuzz(func(t *testing.T, body []byte) {
		a := ts.post(t, ts.token(t), string(body))
		if a.Status == 400 || a.Status == 413 {
			return
		}
		_, value := ts.record(t, a)
		var got, want map[string]any // of the exact names
		testkit.Must(t, errors.Join(json.Unmarshal(value, &got), json.Unmarshal(body, &want)))
		given := []string{"end_user_id", "institution_id", "redirect_uri", "cancel_uri", "permissions", "arrangement_id"}
		none := func(name string, v any) bool { return !slices.Contains(given, name) || v == nil || v == "" }
		maps.DeleteFunc(got, none)
		if maps.DeleteFunc(want, none); !reflect.DeepEqual(got, want) {
			t.Errorf("record of %q = %s, want %v", body, value, want)
		}
	})
}
