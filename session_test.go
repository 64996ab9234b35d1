package main

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

func TestParseBody(t *testing.T) {
	body := `{"cancel_uri":"com.example.app:\/x","x":1,"end_user_id":"\u0065u_1","redirect_uri":null,` +
		`"institution_id":"","permissions":["\u0061"]}`
	got, unknown, err := parseBody([]byte(body))
	want := session{EndUserID: "eu_1", CancelURI: "com.example.app:/x", Permissions: []string{"a"}}
	if err != nil || !reflect.DeepEqual(got, want) || !slices.Equal(unknown, []string{"x"}) {
		t.Errorf("parseBody = %+v, %q, %v, want %+v", got, unknown, err, want)
	}
}

// goodURIs has one of each kind; redirecturi's own tests have all.
var goodURIs = []string{
	"https://app.example.com/cb", "HTTPS://APP.Example.com:8443/Cb?state=1&next=https://evil.com", "https://192.0.2.1/",
	"https://[2001:db8::1]/", "http://localhost:3000/cb", "http://127.0.0.1/", "http://[::1]:51004/cb?a[0]=1",
	"https://app.example.com/~u/-._!$&'()*+,;=:@%20%C3%A9", "com.example.app:/done", "com.example.app://done?x=1",
	"https://app.example.com/" + strings.Repeat("a", 2048-24),
}

// Both URI members keep what is good byte for byte, and name themselves where it is not.
func TestBodyURIs(t *testing.T) {
	members := map[string]func(session) string{
		"redirect_uri": func(s session) string { return s.RedirectURI },
		"cancel_uri":   func(s session) string { return s.CancelURI },
	}
	parse := func(t *testing.T, member, uri string) (session, error) {
		t.Helper()
		body, err := json.Marshal(map[string]string{"end_user_id": "eu_1", member: uri})
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := parseBody(body)
		return s, err
	}
	for member, of := range members {
		for _, uri := range goodURIs {
			if s, err := parse(t, member, uri); err != nil || of(s) != uri {
				t.Errorf("%s %.100q: parseBody = %.100q, %v", member, uri, of(s), err)
			}
		}
		for _, uri := range []string{
			"http://app.example.com/cb", "myapp://cb", "/cb", " ", "https://app.example.com/cb#", "https://a@app.example.com/",
			"https://app.example.com/../x", "https://app.example.com/%0a", "com.example.app:done", "javascript:alert(1)",
			"https://app.example.com/" + strings.Repeat("a", 2049-24),
		} {
			_, err := parse(t, member, uri)
			broken, ok := errors.AsType[*bodyError](err)
			if !ok || broken.name != "bad_request" || !strings.HasPrefix(broken.message, member+" must ") {
				t.Errorf("%s %.100q: parseBody = %v, want bad_request that names it", member, uri, err)
			}
		}
	}
}

func TestIDs(t *testing.T) {
	const most = 1 << 20
	every := make([]byte, 0, 256)
	for c := range 256 {
		if '!' <= c && c <= '~' {
			every = append(every, byte(c))
			continue
		}
		if id := "a" + string([]byte{byte(c)}); checkID(id, most) == nil {
			t.Errorf("checkID(%q) takes it", id)
		}
	}
	if err := checkID(string(every), most); err != nil {
		t.Errorf("checkID(%q) = %v", every, err)
	}
	for n, ok := range map[int]bool{0: false, 1: true, 64: true, 65: true, 128: true, 129: false, 10000: false} {
		if err := checkEndUserID(strings.Repeat("x", n)); (err == nil) != ok {
			t.Errorf("end_user_id of %d bytes: %v", n, err)
		}
	}
	for n, ok := range map[int]bool{0: true, 1: true, 64: true, 65: false, 128: false} {
		if err := checkInstitutionID(strings.Repeat("x", n)); (err == nil) != ok {
			t.Errorf("institution_id of %d bytes: %v", n, err)
		}
	}
}

func TestOpen(t *testing.T) {
	now := time.Unix(1_700_000_000, 999_999_999)
	body := session{EndUserID: "eu_1", InstitutionID: "10", RedirectURI: "https://a.example/?a&b", CancelURI: "a.b:/"}
	ulidText := regexp.MustCompile(`^[0-7][0-9a-hjkmnp-tv-z]{25}$`)
	secretText := regexp.MustCompile(`^[A-Za-z0-9_-]{22,}$`)
	var timePart string
	seen := map[string]bool{}
	for range 1000 {
		got := body
		secret := got.open("acme", now, time.Hour)
		if !ulidText.MatchString(got.ID) {
			t.Fatalf("id = %q, want a ULID in lower case", got.ID)
		}
		if !secretText.MatchString(secret) {
			t.Fatalf("session_id = %q, want 22 or more of A-Za-z0-9_-", secret)
		}
		if seen[got.ID[10:]] || seen[secret] {
			t.Fatalf("id %q or session_id %q was there before", got.ID, secret)
		}
		seen[got.ID[10:]], seen[secret] = true, true
		timePart = got.ID[:10]
		want := session{1, got.ID, "acme", "eu_1", "10", "https://a.example/?a&b", "a.b:/", nil, "",
			1_700_000_000, 1_700_003_600}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("session = %+v, want %+v", got, want)
		}
		if record, err := json.Marshal(got); err != nil || strings.Contains(string(record), secret) {
			t.Fatalf("record %s, %v, has the secret %s", record, err, secret)
		}
	}
	// The letters of 2023-11-14T22:13:20.999Z in Crockford's base 32.
	var milliseconds int64
	for _, c := range timePart {
		milliseconds = milliseconds<<5 | int64(strings.IndexRune("0123456789abcdefghjkmnpqrstvwxyz", c))
	}
	if milliseconds != now.UnixMilli() {
		t.Errorf("the id's time = %d, want %d", milliseconds, now.UnixMilli())
	}
}

// Many sessions at the same time must not share a source of entropy, nor wait for it.
func TestOpenConcurrently(t *testing.T) {
	t.Parallel()
	const each = 500
	found := make(chan []string)
	for range 8 {
		go func() {
			var ids []string
			for range each {
				var s session
				secret := s.open("", time.Unix(1, 0), 0)
				ids = append(ids, s.ID, secret)
			}
			found <- ids
		}()
	}
	seen := map[string]bool{}
	for range 8 {
		for _, id := range <-found {
			seen[id] = true
		}
	}
	if len(seen) != 2*8*each {
		t.Errorf("%d different ids, want %d", len(seen), 2*8*each)
	}
}

func TestHashSecret(t *testing.T) {
	// FIPS 180-2's example.
	const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if got := hashSecret("abc"); got != want {
		t.Errorf("hashSecret = %s, want %s", got, want)
	}
}

// The record has the contract's members in its order, leaves out what was not given, and changes no text.
func TestRecord(t *testing.T) {
	for want, s := range map[string]session{
		`{"v":1,"id":"i","client_id":"c","end_user_id":"e","institution_id":"<&>","redirect_uri":"r","cancel_uri":"'",` +
			`"permissions":["p","q"],"arrangement_id":"a","created_at":1,"expires_at":2}`: {
			1, "i", "c", "e", "<&>", "r", "'", []string{"p", "q"}, "a", 1, 2},
		`{"v":1,"id":"i","client_id":"c","end_user_id":"e","permissions":["p"],"created_at":1,"expires_at":2}`: {
			Version: 1, ID: "i", ClientID: "c", EndUserID: "e", Permissions: []string{"p"}, CreatedAt: 1, ExpiresAt: 2},
		`{"v":1,"id":"i","client_id":"c","end_user_id":"e","created_at":1,"expires_at":-2}`: {
			Version: 1, ID: "i", ClientID: "c", EndUserID: "e", CreatedAt: 1, ExpiresAt: -2},
	} {
		if got := string(s.encode()); got != want {
			t.Errorf("encode() = %s, want %s", got, want)
		}
	}
	texts := []string{"a", `"`, `\`, "<&>", "ü", "\x7f", "\n", "\u2028", "😀", strings.Repeat("x", 300)}
	for i, text := range texts {
		other := texts[len(texts)-1-i]
		s := session{1, text, text, other, text, other, text, []string{other, text, other}[:i%4], text, int64(i), -1}
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.encode(); !bytes.Equal(got, want) {
			t.Errorf("encode() = %s, want %s as json.Marshal", got, want)
		}
		var back session
		if err := stdjson.Unmarshal(s.encode(), &back); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("encoding/json reads record %s as %+v, %v, want %+v", want, back, err, s)
		}
	}
}

// FuzzParseBody holds the members that parseBody reads against encoding/json.
func FuzzParseBody(f *testing.F) {
	for _, body := range []string{
		goodBody,
		`{"end_user_id":"e","institution_id":"10","redirect_uri":"https://a.com/success","cancel_uri":"https://a.com/c"}`,
		`{"end_user_id":"\u0065u","institution_id":null,"redirect_uri":"","cancel_uri":"com.example.app:\/x"}`,
		`{"END_USER_ID":"x","end_user_id":"y","z":[{"end_user_id":1}]}`,
		`{"end_user_id":1,"institution_id":" ","redirect_uri":"http://x","cancel_uri":{}}`,
		`{"end_user_id":"e","permissions":["accounts","\u0062"],"arrangement_id":"a"}`,
		`{"end_user_id":"e","permissions":null}`, `{"end_user_id":"e","permissions":[]}`,
		`{"end_user_id":"e","1":1,"2":2,"3":3,"4":4,"5":5,"6":6,"7":7,"8":8,"9":9,"10":10,"\u00e9":[{}]}`,
		`{"end_user_id":"e","end_user_id":"e"}`, `{"end_user_id":"e","x":{"y":1,"y":1}}`, `{"end_user_id":"\ud800"}`,
		`{}`, `null`, `[{}]`, ` {"end_user_id":"e"} x`, "{\"\xff\":1}", `{"end_user_id":"e","x":` + strings.Repeat("[", 50),
	} {
		f.Add([]byte(body))
	}
	var ascii string
	for c := byte(' '); c <= '~'; c++ {
		ascii += string(rune(c))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, unknown, err := parseBody(data)
		if len(unknown) > maxUnknown {
			t.Errorf("%d names of unknown members, want %d at most", len(unknown), maxUnknown)
		}
		for _, name := range unknown {
			logged := printable(name)
			if len(logged) > 64*len(`\x00`) || strings.Trim(logged, ascii) != "" {
				t.Errorf("name of an unknown member in the log = %q", logged)
			}
		}
		if err != nil {
			broken, ok := errors.AsType[*bodyError](err)
			if !ok || broken.message == "" || broken.name != "bad_request" && broken.name != "invalid_institution_id" {
				t.Errorf("parseBody fails with %#v, want a *bodyError", err)
			}
			return
		}
		var members map[string]stdjson.RawMessage
		if err := stdjson.Unmarshal(data, &members); err != nil {
			t.Fatalf("parseBody takes it, but encoding/json: %v", err)
		}
		for name, got := range map[string]string{
			"end_user_id":    got.EndUserID,
			"institution_id": got.InstitutionID,
			"redirect_uri":   got.RedirectURI,
			"cancel_uri":     got.CancelURI,
			"arrangement_id": got.ArrangementID,
		} {
			var want string // null leaves it so
			if value, given := members[name]; given {
				if err := stdjson.Unmarshal(value, &want); err != nil {
					t.Fatalf("%s is taken, but encoding/json: %v", name, err)
				}
			}
			if got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
			delete(members, name)
		}
		var want []string
		if value, given := members["permissions"]; given {
			if err := stdjson.Unmarshal(value, &want); err != nil || want != nil && len(want) == 0 {
				t.Fatalf("permissions are taken, but encoding/json: %q, %v", want, err)
			}
		}
		if !slices.Equal(got.Permissions, want) {
			t.Errorf("permissions = %q, want %q", got.Permissions, want)
		}
		delete(members, "permissions")
		if want := min(len(members), maxUnknown); len(unknown) != want {
			t.Errorf("names of unknown members = %q, want %d of %d", unknown, want, len(members))
		}
	})
}
